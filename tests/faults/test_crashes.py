"""For every strategy: kill a run at seeded points and resume it. Adapter, memory and metrics have the same bytes."""

import json
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from core import store
from core.plugins import names
from tests.faults.federation import CLIENTS, Kill, Step, files, run_of, start, steps, undisturbed
from tests.federation.conftest import metrics_of, wait_until
from tests.shared import once

pytestmark = pytest.mark.faults
SMALL = {
    "run.num-server-rounds": 3,
    "train.local-steps": 2,
    "train.per-device-batch-size": 4,
    "data.rows-per-client": 8,
    "data.eval-rows-per-client": 4,
    "eval.every": 0,
    "strategy.min-available-nodes": CLIENTS,
    "fault.min-replies": CLIENTS,  # a client that dies stops the run, so that the resumed run has all updates
    "fault.round-deadline-s": 0.2,
    "fault.start-timeout-s": 0.2,
}
MORE = {  # further state of a run: pooled reference point, optimizer moments, averages, groups, merged factors
    "fedavg": {"task.name": "kto", "task.reference-point": "pooled"},
    "local": {"task.name": "sft"},
    "fedadam": {"train.optimizer-state": "keep"},
    "fedyogi": {"strategy.robust": "median"},
    "fedavgm": {"train.optimizer-state": "keep", "lora.aggregation": "fedsa"},
    "fedprox": {"lora.aggregation": "fedex"},
    "fedbis": {"strategy.server-optimizer": "adam", "strategy.ema": 0.5},
    "fedbiscuit": {
        "strategy.selectors": 2,
        "strategy.warmup-rounds": 1,
        "strategy.server-optimizer": "momentum",
    },
    "fedpdpo": {"task.name": "pdpo", "train.optimizer-state": "keep"},
    "ditto": {"strategy.finish-steps": 2},
}
STRATEGIES = names("strategies")


@dataclass(frozen=True)
class Whole:
    """The uninterrupted run."""

    place: Path
    words: dict
    steps: list[Step]

    def of(self, *parts: str, client: bool = False) -> list[Step]:
        """The steps of the server, or of training clients, whose action contains one of `parts`."""
        training = {s.process for s in self.steps if s.number == 0 and s.action.startswith("train")}
        steps = [s for s in self.steps if s.number and (s.process in training if client else s.process == 0)]
        return [s for s in steps if any(part in s.action for part in parts)]


@pytest.fixture(scope="module", params=STRATEGIES)
def whole(request, tmp_path_factory) -> Whole:
    words = {**SMALL, "strategy.name": request.param, **MORE.get(request.param, {})}
    place = once(tmp_path_factory, f"whole-{request.param}", lambda place: undisturbed(words, place))
    return Whole(place, words, steps(place))


def seeded(whole: Whole, *purpose: object) -> random.Random:
    return random.Random(f"{whole.words['strategy.name']} {purpose}")


@pytest.mark.parametrize("draw", range(2))
def test_the_server_dies_before_a_step_of_a_commit(whole, tmp_path, draw):
    step = seeded(whole, "commit", draw).choice(whole.of("checkpoints", "open a"))
    assert start(whole.words, tmp_path, kill=Kill(step)).ended() == -signal.SIGKILL
    resumed_is_whole(whole, tmp_path, step)


def test_the_server_dies_in_the_middle_of_a_write(whole, tmp_path):
    """The write is of a checkpoint's tensors or facts, a line of metrics, or the manifest."""
    rng = seeded(whole, "torn")
    word, most = rng.choice([(".part-", 60_000), ("facts.json", 100), ("open a", 300), (".manifest", 300)])
    writes = [s for s in whole.of(word) if s.action.startswith(("os.mkdir", "open w", "open a"))]
    step, torn = rng.choice(writes), rng.randint(1, most)
    assert start(whole.words, tmp_path, kill=Kill(step, torn)).ended() == -signal.SIGXFSZ
    resumed_is_whole(whole, tmp_path, step)


def test_the_server_dies_at_any_moment(whole, tmp_path):
    """Either its clients outlive it, or all processes are killed."""
    rng = seeded(whole, "moment")
    after, pause_s, machine = (
        rng.randint(10, int(0.8 * len(whole.steps))),
        rng.uniform(0, 0.1),
        rng.random() < 0.5,
    )
    running = start(whole.words, tmp_path)
    wait_until(lambda: (tmp_path / "trace").is_file() and len(steps(tmp_path)) >= after)
    time.sleep(pause_s)
    running.kill(everything=machine)
    assert running.ended() == -signal.SIGKILL
    resumed_is_whole(whole, tmp_path, after)


def test_a_client_dies_while_it_trains(whole, tmp_path):
    """Where the client has a memory, it dies while it saves it. The run stops after the previous round."""
    step = seeded(whole, "client").choice(whole.of("memory", client=True) or whole.of("home", client=True))
    assert start(whole.words, tmp_path, kill=Kill(step)).ended() == 1
    assert "fault.min-replies = 3" in (tmp_path / "log").read_text()
    resumed_is_whole(whole, tmp_path, step)


def resumed_is_whole(whole: Whole, place: Path, why: object) -> None:
    """Resume the run that died in `place`; it keeps its committed rounds, and its results equal those of `whole`."""
    committed = store.rounds(run_of(place) / "checkpoints")
    assert start({**whole.words, "run.resume": str(run_of(place))}, place).ended() == 0, why
    log, run, want = (place / "log").read_text(), run_of(place), run_of(whole.place)
    assert not committed or f"resuming {run.name} after round {committed[-1]}" in log
    assert files(run / "checkpoints") == files(want / "checkpoints"), why
    assert files(run / "adapter") == files(want / "adapter"), why
    assert metrics_of(run) == metrics_of(want), why
    for client in range(CLIENTS):
        for kind in ("memory", "personal"):
            actual, expected = (p / f"home-{client}" / kind for p in (place, whole.place))
            assert files(actual / run.name).items() >= files(expected / want.name).items(), why
    assert json.loads((run / "manifest.json").read_text())["status"] == "finished"
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")], "remains of a crash"
