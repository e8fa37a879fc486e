"""`accord advise` in real processes: what it leaves, and that it goes on where it was stopped."""

import json

import pytest

from server_app.advice import ORDER
from server_app.advising import ARMS, is_finished, run_of
from tests.federation.conftest import SMALL, metrics_of

pytestmark = pytest.mark.slow


@pytest.mark.timeout(900)
def test_an_interrupted_advice_keeps_what_is_finished_and_ends_with_a_report(place):
    """Stopped in its second run, by a benchmark's file that is missing for as long as it is not written."""
    words = [*SMALL, "eval.prompts=prompts.txt", "data.types=2"]
    prompts = place.path / "prompts.txt"
    prompts.write_text("Where does the hare sleep?\n")
    place.accord("advise", *words, f"run.dir={place.path / 'whole'}", timeout=600)
    (folder,) = (place.path / "whole").iterdir()
    runs = {name: run_of(folder, arm) for name, arm in ARMS.items()}
    assert all(run and is_finished(run) for run in runs.values())
    found = json.loads((folder / "advice.json").read_text())
    assert found["word"] == "no difference shown", "three clients are too few for an interval"
    for name in ORDER:
        run = runs[name]
        assert run
        clients = metrics_of(run)[-1]["eval"]["clients"]
        assert found["options"][name]["clients"] == {c: m["logps/accuracies"] for c, m in clients.items()}
