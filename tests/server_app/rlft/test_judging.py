"""Judges, the best epoch, the alarm and best of n, by hand."""

import pytest
import torch

from core.config import parse
from core.errors import ConfigError
from server_app.rlft.judging import (
    Candidates,
    Judge,
    best_epoch,
    best_of_n,
    hacking_epoch,
    is_out_of_patience,
    signal,
)
from tasks.scoring.votes import vote

REWARD = {"task.name": "reward", "rlft.epochs": 1}
UTILITY = {
    ("p", "good"): (3.0, 1.0),
    ("p", "bad"): (0.0, 1.0),
    ("q", "good"): (1.0, 1.0),
    ("q", "bad"): (2.0, 0.0),
}
TRUTH = Judge("truth", lambda prompt, answer, client: UTILITY.get((prompt, answer), (None, None))[client])


def epochs_of(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    """Epochs of (signal, judgement)."""
    return [{"epoch": i, "signal/score": s, "judge/score": j} for i, (s, j) in enumerate(pairs)]


def test_a_policy_is_judged_against_the_reference_over_its_clients() -> None:
    """p: gains 3 and 0 of the two clients, wins 1 and 1/2; q: -1 and 1, wins 0 and 1; r is not in the planted world."""
    metrics = TRUTH.compare(["p", "q", "r"], ["good"] * 3, ["bad"] * 3, (0, 1))
    assert metrics == {"judge/score": (1.5 + 0.0) / 2, "judge/win_rate": (0.75 + 0.5) / 2, "judge/n": 2}
    assert TRUTH.compare(["p"], ["good"], ["bad"], (1,))["judge/win_rate"] == 0.5
    assert TRUTH.compare(["r"], ["good"], ["bad"], (0,)) == {}
    assert Judge("none").compare(["p"], ["good"], ["bad"], (0,)) == {}


def test_the_signal_is_the_vote_on_the_policys_answer() -> None:
    odds = [torch.tensor([[[0.0, s], [-s, 0.0]]]) for s in (2.0, -1.0, 0.0, 1.0)]
    metrics = signal([vote(o, [1.0]) for o in odds])
    assert metrics == {"signal/score": 0.5, "signal/win_rate": 2.5 / 4, "signal/n": 4}


def test_the_best_epoch_is_the_first_with_the_best_judgement() -> None:
    assert best_epoch(epochs_of((0, 0), (1, 2), (2, 2), (3, 1))) == 1
    assert best_epoch(epochs_of((0, 0), (1, -1))) == 0, "the untrained policy"
    assert best_epoch([{"signal/score": 0.0}, {"signal/score": 1.0}]) == 1, "without a judge, the signal"
    assert (
        best_epoch(
            [{"signal/score": 0.0, "judge/accuracy": 0.6}, {"signal/score": 1.0, "judge/accuracy": 0.5}]
        )
        == 0
    )


def test_patience_counts_epochs_without_an_improvement() -> None:
    assert not is_out_of_patience(epochs_of((0, 0), (1, 2), (2, 1)), 2)
    assert is_out_of_patience(epochs_of((0, 0), (1, 2), (2, 1), (3, 2)), 2)
    assert not is_out_of_patience(epochs_of((0, 5), (1, 2), (2, 1), (3, 2)), 0)


@pytest.mark.parametrize(
    ("epochs", "want"),
    [
        (epochs_of((0, 0), (1, 2), (2, 1), (3, 1.5)), 1),
        (epochs_of((0, 0), (1, 2), (2, 1)), None),  # it must last
        (epochs_of((0, 0), (1, 2), (0.5, 1), (0.6, 1)), None),  # the signal fell as well
        (epochs_of((0, 0), (1, 1), (2, 2), (3, 3)), None),
        (epochs_of((0, 3), (1, 2), (2, 1)), 0),
        ([{"signal/score": float(i)} for i in range(4)], None),  # no judge
    ],
)
def test_the_alarm_goes_off_when_the_judgement_falls_and_the_signal_rises(epochs, want) -> None:
    assert hacking_epoch(epochs) == want


def test_best_of_n_by_hand() -> None:
    """To the vote the reference is worth 0, the answers 1, 3, 2: picks 0, 1, 1; to the judge bad, good, bad."""
    worth = torch.tensor([0.0, 1.0, 3.0, 2.0])
    odds = (worth[:, None] - worth[None, :])[None]
    rows = best_of_n([Candidates("p", "bad", ["bad", "good", "bad"], odds)], [1.0], "soft", TRUTH, (0,))
    assert [row["n"] for row in rows] == [1, 2, 3]
    for way in ("knockout", "round_robin"):
        assert [row[f"{way}/judge/score"] for row in rows] == [0.0, 3.0, 3.0]
        assert [row[f"{way}/judge/win_rate"] for row in rows] == [0.5, 1.0, 1.0]
        assert [row[f"{way}/signal/score"] for row in rows] == [1.0, 3.0, 3.0]


def test_the_judge_follows_from_configuration_and_source() -> None:
    config = parse(REWARD)
    assert Judge.of(config, config.source_choice.build()).name == "truth"
    files = parse({**REWARD, "data.source": "jsonl"})
    assert Judge.of(files, files.source_choice.build()).name == "none"
    pairs = parse({**REWARD, "rlft.judge": "pairs", "eval.pairs": "some.jsonl"})
    assert Judge.of(pairs, pairs.source_choice.build()).pairs == pairs.judge
    assert pairs.benchmarks == ()
    wanted = parse({**REWARD, "data.source": "jsonl", "rlft.judge": "truth"})
    with pytest.raises(ConfigError, match=r"rlft\.judge = 'truth'.*no planted truth.*pairs"):
        Judge.of(wanted, wanted.source_choice.build())
