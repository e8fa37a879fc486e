"""What the runs of an advice are: equal steps, keys where they have an effect, refusals before anything runs."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

from cli.advice.arms import ARMS, arm_keys, check, foretold, open_folder, run_arms, run_of
from cli.advice.recommend import CLUSTERS, FEDAVG, FEDPDPO, FINISH, ORDER
from core import store
from core.config import parse
from core.errors import CheckpointError, ConfigError
from server_app.report.reading import ASKED

ASK = {"run.num-server-rounds": 12, "train.local-steps": 10}


def test_every_option_has_a_run_and_the_probe_is_the_first():
    assert sorted(ARMS) == sorted(ORDER)
    assert next(iter(ARMS)) == FEDAVG


def test_every_client_takes_the_same_steps_in_every_run():
    for arm in ARMS.values():
        keys = arm_keys(arm, ASK)
        federated = int(keys["run.num-server-rounds"]) * int(keys["train.local-steps"])
        assert federated + int(keys.get("strategy.finish-steps", 0)) == 120, arm.name


def test_finishing_steps_of_ones_own_choice_are_paid_for_in_rounds():
    keys = arm_keys(ARMS[FINISH], {**ASK, "strategy.finish-steps": 35})
    assert (keys["run.num-server-rounds"], keys["strategy.finish-steps"]) == (8, 35)
    assert "strategy.finish-steps" not in arm_keys(ARMS[FEDAVG], {**ASK, "strategy.finish-steps": 35})


def test_a_key_goes_to_the_runs_that_read_it():
    asked = {**ASK, "task.loss-type": "ipo", "strategy.personal-steps": 3, "task.beta": 0.2}
    found = {name: arm_keys(arm, asked) for name, arm in ARMS.items()}
    assert {name for name, keys in found.items() if "task.loss-type" in keys} == set(ORDER) - {FEDPDPO}
    assert {name for name, keys in found.items() if "strategy.personal-steps" in keys} == {FEDPDPO}
    assert all(keys["task.beta"] == 0.2 for keys in found.values())
    for keys in found.values():
        parse(keys)


@pytest.mark.parametrize(
    ("groups", "selectors", "soft"),
    [
        ([], 2, False),
        ([0] * 8, 2, False),
        ([0, 1, 2, 0, 1, 2, 0, 1], 3, False),
        ([0, 0, 0, 0, 0, 1, 1, 1], 2, True),
    ],
)
def test_the_map_says_how_many_selectors_there_are(groups, selectors, soft):
    keys = arm_keys(ARMS[CLUSTERS], ASK, groups)
    assert keys["strategy.selectors"] == selectors
    assert ("strategy.soft-balance" in keys) is soft
    parse(keys)


def test_more_clusters_than_rounds_to_warm_them_up_are_cut():
    keys = arm_keys(ARMS[CLUSTERS], {**ASK, "run.num-server-rounds": 4}, [0, 1, 2, 3, 4, 5])
    assert keys["strategy.selectors"] == 3
    parse(keys)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"strategy.name": "ditto"}, "strategy.name"),
        ({"task.name": "kto"}, "task.name"),
        ({"train.local-epochs": 1.0}, "train.local-steps"),
        ({"run.num-server-rounds": 2}, "needs 3"),
        ({"strategy.proximal-mu": 0.5}, "no effect"),
        ({"strategy.finish-steps": 120}, "leave no round"),
        ({"strategy.selectors": 12}, "warm-up"),
        ({"train.local-steps": 0}, "train.local-steps must be above 0"),
        ({"strategy.warmup-rounds": 0}, "strategy.warmup-rounds must be above 0"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(asked, told):
    with pytest.raises(ConfigError, match=told):
        check({**ASK, **asked})
    check(ASK)


@pytest.mark.parametrize(("clients", "told"), [(1, "1 client is"), (5, "5 clients are")])
def test_too_few_clients_are_told_before_they_run(clients, told):
    (line,) = foretold({"num-supernodes": clients, "superlink": ""})
    assert f"{told} too few for an interval; at least 6" in line


@pytest.mark.parametrize(("clients", "superlink"), [(6, ""), (5, "clinics")])
def test_nothing_is_foretold_of_enough_clients_or_of_a_deployment_whose_clients_come(clients, superlink):
    assert not foretold({"num-supernodes": clients, "superlink": superlink})


def test_a_folder_remembers_what_was_asked_for(tmp_path):
    folders = [open_folder({**ASK, "federation.num-supernodes": 8}, tmp_path) for _ in range(2)]
    assert len(set(folders)) == 2
    assert tomllib.loads((folders[0] / ASKED).read_text())["train.local-steps"] == 10


def leave(folder: Path, status: str) -> None:
    run = folder / "run"
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.toml").write_text("")
    (run / "manifest.json").write_text(json.dumps({"status": status}))


def test_a_place_where_nothing_can_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot write"):
        open_folder(ASK, tmp_path / "file")


def test_what_is_finished_is_kept_and_what_is_not_is_resumed(tmp_path):
    """Up to a run that fails, whose exit code is handed on; a folder without a configuration is no run."""
    for name in ("local", "finish"):
        leave(tmp_path / name, "finished")
    leave(tmp_path / "clusters", "running")
    (tmp_path / "fedpdpo" / "torn").mkdir(parents=True)
    started = []

    def start(keys: dict) -> int:
        started.append(keys)
        return 7

    assert run_arms(tmp_path, ASK, start) == 7
    (first,) = started
    assert (first["run.dir"], first["strategy.name"]) == (str(tmp_path / "fedavg"), "probe")
    assert "run.resume" not in first
    assert run_of(tmp_path, ARMS[CLUSTERS]) == tmp_path / "clusters" / "run"
    assert run_of(tmp_path, ARMS[FEDPDPO]) is None
    assert not (tmp_path / "fedpdpo" / "torn").exists()
    started.clear()
    leave(tmp_path / "fedavg", "finished")
    types = np.equal.outer([0, 1, 2] * 4, [0, 1, 2] * 4)
    matrix = np.where(np.eye(12, dtype=bool), 1, np.where(types, 0.8, -0.4)).tolist()
    known = {"clients": list(range(12)), "cosine": matrix, "signs": matrix, "apart": matrix}
    place = store.round_folder(tmp_path / "fedavg" / "run" / "checkpoints", 12)
    store.save(place, {}, {"facts": {"conflict": known}})
    assert run_arms(tmp_path, ASK, start) == 7
    (second,) = started
    assert second["run.resume"] == str(tmp_path / "clusters" / "run")
    assert (second["strategy.name"], second["strategy.selectors"]) == ("fedbiscuit", 3)
