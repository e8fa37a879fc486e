"""The verdict of a report on the text that the trained model generates."""

import pytest

from server_app.report.formatting import degenerate, verdict
from server_app.report.headline import headline
from server_app.report.reading import read_run
from server_app.report.stats import by_key
from tests.server_app.report.sample import dpo_record, dpo_run, write_run

FINE = "the red bird is kind and sings a song"
STUCK = "the bird the bird the bird the bird the bird"


def records(**last: float):
    """Before and after a run whose accuracy rises; `last` replaces metrics of the last round."""
    first, after = dpo_record(0), dpo_record(12)
    for record, more in ((first, {"truth__valid": 1.0, "truth__utility": 3.5}), (after, last)):
        named = {name.replace("__", "/"): value for name, value in more.items()}
        for metrics in (record["eval"]["mean"], *record["eval"]["clients"].values()):
            metrics |= named
    return [first, after]


def verdict_of(tmp_path, answers=(), **last: float) -> str:
    written = [{"prompt": "how?", "before": before, "after": after} for before, after in answers]
    run = read_run(write_run(tmp_path, records(**last), answers=written))
    return verdict(headline(run)) or ""


def test_kl_and_repetition_follow_the_accuracy(tmp_path):
    text = verdict_of(tmp_path, [(FINE, FINE), (FINE, STUCK)])
    assert "prefers the chosen answer 72.9 % of the time" in text
    assert "KL to the base 0.6 nats" in text
    assert "repeated 4-grams 35.7 % (base 0.0 %)" in text  # 5 of 7 in one of two answers
    assert "worse than that of the base: its answers are repetitive." in text


def test_metrics_without_data_are_not_named(tmp_path):
    text = verdict_of(tmp_path, [("yes", "no")])
    assert "repeated" not in text
    assert "valid" not in text
    assert "worse" not in text
    keys = by_key(headline(read_run(dpo_run(tmp_path / "other"))))
    assert not [key for key in keys if key.startswith("truth/")]


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ({"kl": 6.3, "logps__chosen": -80.0}, "far from the base"),
        ({"truth__valid": 0.54, "truth__utility": 3.6}, "fewer of its answers are valid"),
        ({"truth__valid": 1.0, "truth__utility": 2.73}, "lower utility for the clients"),
    ],
)
def test_a_gain_in_accuracy_does_not_hide_text_that_degenerates(tmp_path, last, reason):
    text = verdict_of(tmp_path, [(FINE, FINE)], **last)
    assert "The gain is larger" in text
    assert "Its text is worse" in text
    assert reason in text


@pytest.mark.parametrize(
    "last",
    [
        {"kl": 6.3, "logps__chosen": -10.0},  # far, but towards the chosen answers: sft on a new format
        {"kl": 0.4, "logps__chosen": -80.0},
        {"truth__valid": 0.96, "truth__utility": 5.0},
    ],
)
def test_text_that_has_not_degenerated_is_not_called_worse(tmp_path, last):
    assert "worse" not in verdict_of(tmp_path, [(FINE, FINE)], **last)


def test_without_a_base_nothing_is_worse():
    assert degenerate({"repetition after": 0.9, "truth/valid after": 0.1}) == []
    assert degenerate({}) == []


def test_the_headline_has_the_planted_truth_with_its_base(tmp_path):
    run = read_run(write_run(tmp_path, records(truth__valid=0.75, truth__right=0.5, truth__utility=4.0)))
    estimates = by_key(headline(run))
    assert estimates["truth/valid before"].value == 1.0
    assert (estimates["truth/valid after"].value, estimates["truth/valid after"].n) == (0.75, 8)
    assert estimates["truth/utility after"].value == 4.0
    assert "truth/right before" not in estimates
