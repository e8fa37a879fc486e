"""kill -9 during a round, then resume: the same adapter and the same metrics, byte for byte."""

import sys

import pytest

from core import store
from tests.faults.federation import whole
from tests.federation.conftest import ROOT, SMALL, kill_tree, metrics_of, wait_until

pytestmark = pytest.mark.slow
KEEP = ["train.optimizer-state=keep", "train.lr-schedule=cosine", "train.row-sampling=openfedllm"]


@pytest.mark.parametrize("words", [["strategy.name=local", "task.name=kto"], KEEP])
def test_a_killed_and_resumed_run_equals_the_uninterrupted_one(place, words):
    words = [*SMALL, *words, "run.num-server-rounds=6"]
    whole_run = whole(words, place.path / "whole")
    process = place.start(
        sys.executable, str(ROOT / "accord"), "run", *words, "run.dir=killed", log="killed.log"
    )
    checkpoints = lambda: list((place.path / "killed").glob("*/checkpoints/00002/facts.json"))  # noqa: E731
    wait_until(checkpoints, 200)
    kill_tree(process.pid)  # and with it SuperLink, ServerApp and Ray's actors
    (killed,) = (place.path / "killed").iterdir()
    assert store.rounds(killed / "checkpoints")[-1] in (2, 3, 4)
    assert not (killed / "adapter").exists()

    place.accord("resume", str(killed))
    for file in ("adapter/adapter_model.safetensors", "checkpoints/00006/tensors.safetensors"):
        assert (killed / file).read_bytes() == (whole_run / file).read_bytes(), file
    assert metrics_of(killed) == metrics_of(whole_run)


def test_a_finished_run_can_be_extended(place, finished):
    run = finished(*SMALL).copy(place)
    place.accord("resume", str(run), "run.num-server-rounds=6")
    longer = whole([*SMALL, "run.num-server-rounds=6"], place.path / "whole")
    name = "adapter/adapter_model.safetensors"
    assert (run / name).read_bytes() == (longer / name).read_bytes()
    extended, uninterrupted = metrics_of(run), metrics_of(longer)
    for metrics in (extended[3]["eval"]["mean"], *extended[3]["eval"]["clients"].values()):
        assert [metrics.pop(name) for name in list(metrics) if name.startswith("truth/")], (
            "only the last round measures them"
        )
    assert extended == uninterrupted


def test_a_finished_run_cannot_be_changed(place, finished):
    run = finished(*SMALL).run
    words = ["run.num-server-rounds=6", "train.learning-rate=0.5"]
    process = place.accord("resume", str(run), *words, check=False)
    assert process.returncode == 2
    assert all(part in process.stderr for part in ("train.learning-rate", "0.0005", "0.5"))
