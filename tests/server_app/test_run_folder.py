"""The run folder after crashes and full disks: a round counts completely or not at all."""

import os
import shutil

import pytest
import torch

from cli.run.request import request
from core.config import parse
from core.errors import CheckpointError, ConfigError, DataError
from core.types import ServerState
from server_app.main import Run
from server_app.report.card import card
from server_app.report.formatting import state as state_of
from server_app.report.reading import read_run
from server_app.run_folder import RunFolder
from tests.core.test_store import no_file_above


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder.create(parse({"run.dir": str(tmp_path)}))


def commit(folder: RunFolder, rnd: int) -> None:
    state = ServerState(42, rnd, {"global": {"w": torch.full((500,), float(rnd))}}, {}, {"clients": 3})
    folder.commit(state, {"round": rnd, "participants": [], "failed": {}})


def rounds(folder: RunFolder) -> list[int]:
    return [record["round"] for record in folder.metrics()]


def test_a_committed_round_is_loaded(folder):
    for rnd in range(3):
        commit(folder, rnd)
    state = folder.load_state()
    assert state is not None
    assert (state.round, state.adapters["global"]["w"][0].item(), state.facts) == (2, 2.0, {"clients": 3})
    assert rounds(folder) == [0, 1, 2]


@pytest.mark.parametrize("most", [60, 1000])
def test_a_round_that_the_disk_refuses_leaves_no_trace(folder, most):
    """60 bytes: the line of metrics is torn; 1000: it is whole, and the tensors are torn."""
    commit(folder, 0)
    with no_file_above(most), pytest.raises(CheckpointError, match="cannot write"):
        commit(folder, 1)
    assert rounds(folder) == [0]
    assert (folder.path / "metrics.jsonl").read_text().count("\n") == 1
    commit(folder, 1)
    assert rounds(folder) == [0, 1]


def test_remains_of_a_crash_are_deleted(folder):
    commit(folder, 0)
    commit(folder, 1)
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"failed": {}, "participants": [], "round": 2}\n{"fai')
    (folder.checkpoints / ".00002.part-x").mkdir()
    (folder.path / ".manifest.json.part-7").write_text("{")
    (folder.path / ".spool").mkdir()
    (folder.path / ".spool" / ".nfs0001").write_text("an update")
    state = folder.load_state()
    assert state is not None
    assert state.round == 1
    assert rounds(folder) == [0, 1]
    assert sorted(p.name for p in folder.checkpoints.iterdir()) == ["00000", "00001"]
    assert sorted(p.name for p in folder.path.iterdir()) == ["checkpoints", "config.toml", "metrics.jsonl"]


def test_the_spool_is_removed_at_the_end_of_a_run_that_fails_too(folder):
    def fail() -> None:
        with folder.spool() as spool:
            (spool / ".nfs0001").write_text("an update")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not (folder.path / ".spool").exists()


def test_a_run_that_another_process_holds_is_not_resumed(folder):
    reopened = RunFolder.reopen(parse({"run.dir": str(folder.path.parent), "run.resume": str(folder.path)}))
    lock = folder.hold()
    with pytest.raises(CheckpointError, match=r"another process.*flwr stop"):
        reopened.hold()
    os.close(lock)
    os.close(reopened.hold())


def resume(folder: RunFolder, **keys) -> RunFolder:
    """Resume a run as the server does."""
    options = {key.replace("__", ".").replace("_", "-"): value for key, value in keys.items()}
    config = parse({"run.dir": str(folder.path.parent), "run.resume": str(folder.path), **options})
    reopened = RunFolder.reopen(config)
    state = reopened.load_state()
    reopened.write_manifest(asked=reopened.plan_history(config, state.round if state else 0))
    reopened.write_config(config)
    return reopened


def test_fewer_rounds_than_completed_are_refused(folder):
    for rnd in range(4):
        commit(folder, rnd)
    with pytest.raises(CheckpointError, match=r"completed 3 rounds.*run\.num-server-rounds = 2.*3 or more"):
        resume(folder, run__num_server_rounds=2)
    resume(folder, run__num_server_rounds=3)


def test_config_report_and_card_say_that_a_run_was_resumed_with_more_rounds(folder):
    """In config.toml, which has the latest keys, and in the sentence on the state of report and card."""
    folder.write_config(parse({"run.dir": str(folder.path.parent)}), clients=5)
    for rnd in range(3):
        commit(folder, rnd)
    resume(folder)
    assert not (folder.path / "config.toml").read_text().startswith("#")
    for rounds_asked in (20, 20, 30):  # the second is a plain resumption
        resume(folder, run__num_server_rounds=rounds_asked)
    sentence = "12 rounds, then resumed after round 2 to 20 rounds, then resumed after round 2 to 30 rounds"
    assert (folder.path / "config.toml").read_text().startswith(f"# {sentence}\n")
    folder.write_manifest(status="finished", rounds=30)
    run = read_run(folder.path)
    assert run.config["run.num-server-rounds"] == 30
    assert run.config["run.resume"] == ""
    assert run.federation == {"num-supernodes": 5}
    assert sentence in state_of(run)
    assert sentence in card(run)


def test_config_toml_is_a_preset_that_repeats_the_run(folder):
    config = parse({"run.dir": str(folder.path.parent), "strategy.min-available-nodes": 5})
    folder.write_config(config, clients=5)
    repeated = request([str(folder.path / "config.toml")])
    assert parse(repeated.keys).flat == config.flat
    assert repeated.federation["num-supernodes"] == 5


def test_a_run_with_a_schedule_over_its_rounds_is_not_extended(tmp_path):
    cosine = {"run.dir": str(tmp_path), "train.lr-schedule": "cosine"}
    path = str(RunFolder.create(parse(cosine)).path)
    RunFolder.reopen(parse({**cosine, "run.resume": path}))
    with pytest.raises(
        CheckpointError, match=r"run\.num-server-rounds = 12.* 20: train\.lr-schedule = 'cosine'.*new run"
    ):
        RunFolder.reopen(parse({**cosine, "run.resume": path, "run.num-server-rounds": 20}))
    constant = {"run.dir": str(tmp_path)}
    path = str(RunFolder.create(parse(constant)).path)
    RunFolder.reopen(parse({**constant, "run.resume": path, "run.num-server-rounds": 20}))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("tensors.safetensors", content) for content in (None, b"", b"\xff\x00", b"[]")),
        *(
            ("facts.json", content) for content in (b"", b"\xff\x00", b"[]")
        ),  # without one it is no checkpoint
    ],
)
def test_a_damaged_checkpoint_is_refused_with_a_remedy(folder, name, content):
    commit(folder, 0)
    commit(folder, 1)
    damaged = folder.checkpoints / "00001" / name
    damaged.unlink()
    if content is not None:
        damaged.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"00001 .*delete it.* round 0$"):
        folder.load_state()
    shutil.rmtree(damaged.parent)
    assert folder.load_state() is not None


@pytest.mark.parametrize(
    "line", [b"garbage", b"[1]", b'{"round": null}', b'{"round": 1, "train": 3}', b"\xff"]
)
def test_a_damaged_line_of_metrics_is_refused_and_kept(folder, line):
    commit(folder, 0)
    path = folder.path / "metrics.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: expected a round's metrics"):
        folder.load_state()
    assert path.read_bytes().startswith(line)
    with pytest.raises(DataError, match=r"metrics.jsonl, line 1: expected a round's metrics"):
        read_run(folder.path)


def test_a_run_without_a_round_is_deleted(folder):
    folder.write_manifest(status="running")
    assert folder.discard_without_round()
    assert not folder.path.exists()


def test_a_run_with_a_round_stays(folder):
    commit(folder, 0)
    assert not folder.discard_without_round()
    assert rounds(folder) == [0]


@pytest.mark.parametrize("keys", [{"lora.target-modules": "nope"}, {"model.name": "/no/such/folder"}])
def test_a_server_that_cannot_start_leaves_no_folder(tmp_path, keys):
    with pytest.raises(ConfigError):
        Run.open(parse({"run.dir": str(tmp_path), **keys}))
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_be_resumed_is_kept(tmp_path, folder):
    keys = {"run.resume": str(folder.path), "run.dir": str(tmp_path)}
    torn = folder.path / "config.toml"
    torn.write_text(torn.read_text().replace('target-modules = "all-linear"', 'target-modules = "nope"'))
    with pytest.raises(ConfigError, match="target-modules"):
        Run.open(parse({**keys, "lora.target-modules": "nope"}))
    assert folder.path.is_dir()
