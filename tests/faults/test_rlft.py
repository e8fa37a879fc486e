"""RLFT is killed in each of its stages and resumed: the same preferences, policies and epochs."""

import random
import signal
from pathlib import Path

import pytest

from tests.faults.federation import CLIENTS, Kill, Step, files, run_of, start, steps, undisturbed
from tests.faults.test_crashes import SMALL, Whole
from tests.shared import once

pytestmark = pytest.mark.faults
WORDS = {
    **SMALL,
    "run.num-server-rounds": 1,
    "task.name": "reward",
    "rlft.epochs": 2,
    "rlft.refresh-every": 1,
    "rlft.completions": 2,
    "rlft.max-new-tokens": 12,
    "rlft.labels": "hard",
}
STAGES = {  # parts of the paths that a stage writes
    "generate": ("answers.jsonl", "references.jsonl"),
    "score": ("scores.jsonl",),
    "train": ("epochs", "cache"),
    "leave": ("record.json", "preferences.jsonl", "/policy/"),
}
PROMPTS = [
    "What does the fox eat?",
    "Where does the owl sleep?",
    "What does the bear fear?",
    "What does the deer eat?",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Whole:
    words = {**WORDS, "strategy.min-available-nodes": CLIENTS}

    def with_prompts(place: Path) -> dict:
        return {**words, "rlft.prompts": str(place / "prompts.txt")}

    def make(place: Path) -> None:
        (place / "prompts.txt").write_text("\n".join(PROMPTS))
        undisturbed(with_prompts(place), place)

    place = once(tmp_path_factory, "whole-rlft", make)
    return Whole(place, with_prompts(place), steps(place))


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_killed_before_a_step_of_a_stage_can_be_resumed(whole, tmp_path, stage):
    step = random.Random(stage).choice(within(whole, stage))
    assert start(whole.words, tmp_path, kill=Kill(step)).ended() == -signal.SIGKILL
    resumed_is_whole(whole, tmp_path, step)


def test_a_run_killed_in_the_middle_of_a_line_can_be_resumed(whole, tmp_path):
    """The line holds an answer, but not the first one."""
    writes = [s for s in within(whole, "generate") if s.action.startswith("open a")]
    later = [s for i, s in enumerate(writes) if s.action in {w.action for w in writes[:i]}]
    step = random.Random("torn").choice(later)
    assert start(whole.words, tmp_path, kill=Kill(step, 20)).ended() == -signal.SIGXFSZ
    resumed_is_whole(whole, tmp_path, step)


def within(whole: Whole, stage: str) -> list[Step]:
    matches = [s for s in whole.of(*STAGES[stage]) if "/rlft/" in s.action or "/policy/" in s.action]
    assert matches, stage
    return matches


def resumed_is_whole(whole: Whole, place: Path, why: object) -> None:
    assert start({**whole.words, "run.resume": str(run_of(place))}, place).ended() == 0, why
    run, want = run_of(place), run_of(whole.place)
    assert files(run / "policy") == files(want / "policy"), why
    actual, expected = (
        {
            name: text
            for name, text in files(r / "rlft").items()
            if "cache" not in name and ".part" not in name
        }
        for r in (run, want)
    )
    assert actual == expected, why
    assert (run / "answers.json").read_bytes() == (want / "answers.json").read_bytes()
