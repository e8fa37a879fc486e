"""`accord run` with RLFT, and `accord resume` with more epochs: real processes."""

import json

import pytest

from tests.federation.conftest import SMALL

pytestmark = pytest.mark.slow
WORDS = [
    "task.name=reward",
    "run.num-server-rounds=1",
    "eval.every=0",
    "rlft.completions=2",
    "rlft.max-new-tokens=12",
    "rlft.labels=hard",
    "rlft.patience=0",
]


def test_a_run_trains_a_policy_and_resumes_with_more_epochs(place):
    (place.path / "prompts.txt").write_text(
        "What does the fox eat?\nWhere does the owl sleep?\nWhat does the bear fear?"
    )
    small = [word for word in SMALL if not word.startswith("run.")]
    output = place.accord(
        "run", *small, *WORDS, f"rlft.prompts={place.path}/prompts.txt", "rlft.epochs=1"
    ).stdout
    (run,) = place.runs()
    assert "rlft     2 prompts x 2 answers, labelled by 1 selector; 1 prompt held out, judge: truth" in output
    assert "best on held-out prompts" in output
    first = (run / "rlft" / "answers.jsonl").read_bytes()
    place.accord("resume", str(run), "rlft.epochs=2")
    record = json.loads((run / "rlft" / "record.json").read_text())
    assert [e["epoch"] for e in record["policies"]["population"]["epochs"]] == [0, 1, 2]
    assert (run / "rlft" / "answers.jsonl").read_bytes() == first
    assert (run / "policy" / "adapter_model.safetensors").is_file()
    assert "The policy by epoch" in (run / "report.html").read_text()
    (row, *_) = [json.loads(line) for line in (run / "rlft" / "preferences.jsonl").read_text().splitlines()]
    assert set(row) == {"prompt", "chosen", "rejected", "label_confidence", "agreement", "turn"}
