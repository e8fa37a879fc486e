"""The runs of an advice: equal steps, keys where they have an effect, refusals before anything runs."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

from cli.advice.arms import ARMS, arm_keys, check, early_warnings, open_folder, run_arms, run_of
from cli.advice.recommend import CLUSTERS, FEDAVG, FEDPDPO, FINISH, ORDER
from core import store
from core.config import parse
from core.errors import CheckpointError, ConfigError
from server_app.report.reading import ADVICE

REQUEST = {"run.num-server-rounds": 12, "train.local-steps": 10}


def test_every_option_has_a_run_and_the_probe_is_the_first():
    assert sorted(ARMS) == sorted(ORDER)
    assert next(iter(ARMS)) == FEDAVG


def test_every_client_takes_the_same_steps_in_every_run():
    for arm in ARMS.values():
        keys = arm_keys(arm, REQUEST)
        federated = int(keys["run.num-server-rounds"]) * int(keys["train.local-steps"])
        assert federated + int(keys.get("strategy.finish-steps", 0)) == 120, arm.name


def test_finish_steps_named_by_the_user_replace_rounds():
    keys = arm_keys(ARMS[FINISH], {**REQUEST, "strategy.finish-steps": 35})
    assert (keys["run.num-server-rounds"], keys["strategy.finish-steps"]) == (8, 35)
    assert "strategy.finish-steps" not in arm_keys(ARMS[FEDAVG], {**REQUEST, "strategy.finish-steps": 35})


def test_a_key_goes_to_the_runs_that_read_it():
    request = {**REQUEST, "task.loss-type": "ipo", "strategy.personal-steps": 3, "task.beta": 0.2}
    keys_of = {name: arm_keys(arm, request) for name, arm in ARMS.items()}
    assert {name for name, keys in keys_of.items() if "task.loss-type" in keys} == set(ORDER) - {FEDPDPO}
    assert {name for name, keys in keys_of.items() if "strategy.personal-steps" in keys} == {FEDPDPO}
    assert all(keys["task.beta"] == 0.2 for keys in keys_of.values())
    for keys in keys_of.values():
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
def test_the_number_of_selectors_is_that_of_the_clusters_in_the_map(groups, selectors, soft):
    keys = arm_keys(ARMS[CLUSTERS], REQUEST, groups)
    assert keys["strategy.selectors"] == selectors
    assert ("strategy.soft-balance" in keys) is soft
    parse(keys)


def test_the_number_of_clusters_is_limited_by_the_rounds_of_warm_up():
    keys = arm_keys(ARMS[CLUSTERS], {**REQUEST, "run.num-server-rounds": 4}, [0, 1, 2, 3, 4, 5])
    assert keys["strategy.selectors"] == 3
    parse(keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"strategy.name": "ditto"}, "strategy.name"),
        ({"task.name": "kto"}, "task.name"),
        ({"train.local-epochs": 1.0}, "train.local-steps"),
        ({"run.num-server-rounds": 2}, "at least 3"),
        ({"strategy.proximal-mu": 0.5}, "no effect"),
        ({"strategy.finish-steps": 120}, "finish-steps = 120 .*lower it"),
        ({"strategy.selectors": 12}, "warm-up"),
        ({"train.local-steps": 0}, "train.local-steps must be above 0"),
        ({"strategy.warmup-rounds": 0}, "strategy.warmup-rounds must be above 0"),
    ],
)
def test_requests_that_cannot_be_compared_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        check({**REQUEST, **keys})
    check(REQUEST)


@pytest.mark.parametrize(("clients", "counted"), [(1, "1 client is"), (5, "5 clients are")])
def test_too_few_clients_are_reported_before_anything_runs(clients, counted):
    (line,) = early_warnings({"num-supernodes": clients, "superlink": ""})
    assert f"{counted} too few for an interval; at least 6" in line


@pytest.mark.parametrize(("clients", "superlink"), [(6, ""), (5, "clinics")])
def test_enough_clients_and_deployments_give_no_early_warning(clients, superlink):
    assert not early_warnings({"num-supernodes": clients, "superlink": superlink})


def test_a_folder_stores_the_request(tmp_path):
    folders = [open_folder({**REQUEST, "federation.num-supernodes": 8}, tmp_path) for _ in range(2)]
    assert len(set(folders)) == 2
    assert tomllib.loads((folders[0] / ADVICE).read_text())["train.local-steps"] == 10


def write_arm_run(folder: Path, status: str) -> None:
    run = folder / "run"
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.toml").write_text("")
    (run / "manifest.json").write_text(json.dumps({"status": status}))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot write"):
        open_folder(REQUEST, tmp_path / "file")


def test_finished_runs_are_kept_and_unfinished_ones_resumed(tmp_path):
    """The exit code of a failing run is returned; a folder without a configuration is not a run."""
    for name in ("local", "finish"):
        write_arm_run(tmp_path / name, "finished")
    write_arm_run(tmp_path / "clusters", "running")
    (tmp_path / "fedpdpo" / "torn").mkdir(parents=True)
    started = []

    def start(keys: dict) -> int:
        started.append(keys)
        return 7

    assert run_arms(tmp_path, REQUEST, start) == 7
    (first,) = started
    assert (first["run.dir"], first["strategy.name"]) == (str(tmp_path / "fedavg"), "probe")
    assert "run.resume" not in first
    assert run_of(tmp_path, ARMS[CLUSTERS]) == tmp_path / "clusters" / "run"
    assert run_of(tmp_path, ARMS[FEDPDPO]) is None
    assert not (tmp_path / "fedpdpo" / "torn").exists()
    started.clear()
    write_arm_run(tmp_path / "fedavg", "finished")
    types = np.equal.outer([0, 1, 2] * 4, [0, 1, 2] * 4)
    matrix = np.where(np.eye(12, dtype=bool), 1, np.where(types, 0.8, -0.4)).tolist()
    conflict = {"clients": list(range(12)), "cosine": matrix, "signs": matrix, "apart": matrix}
    checkpoint = store.round_folder(tmp_path / "fedavg" / "run" / "checkpoints", 12)
    store.save(checkpoint, {}, {"facts": {"conflict": conflict}})
    assert run_arms(tmp_path, REQUEST, start) == 7
    (second,) = started
    assert second["run.resume"] == str(tmp_path / "clusters" / "run")
    assert (second["strategy.name"], second["strategy.selectors"]) == ("fedbiscuit", 3)
