"""Votes, rankings and pairs: published vectors, tables computed by hand, and invariance to the order of answers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tasks.scoring.votes import knockout, pairs, ranking, vote
from tests.vectors import FEDBISCUIT


def matrix(n: int, above: list[float]) -> Tensor:
    """(1, n, n) from the scores above the diagonal, row by row."""
    out = torch.zeros(n, n)
    i, j = torch.triu_indices(n, n, offset=1)
    out[i, j], out[j, i] = torch.tensor(above), -torch.tensor(above)
    return out[None]


def test_votes_equal_the_published_ones_except_ties() -> None:
    """B - A is the log-odds of the second answer. Their majority gives ties to the first; ours to the soft vote."""
    cases = FEDBISCUIT["majority_vote"]["cases"][:4]
    ties = 0
    for case in cases:
        for pair in range(6):
            z = [-row[pair] for row in case["selector_logit_B_minus_A"]]
            scores, weights = torch.stack([matrix(2, [v])[0] for v in z]), [1.0] * case["U"]
            soft, majority = (vote(scores, weights, how) for how in ("soft", "majority"))
            assert soft.score[0, 1].item() == pytest.approx(-case["soft_vote_score"][pair], abs=1e-6)
            assert (soft.prefers[0, 1] < 0) == bool(case["soft_vote_mean_logit"][pair])
            if tie := 2 * case["votes_for_B"][pair] == case["U"]:
                assert majority.prefers[0, 1] == soft.prefers[0, 1]
                assert majority.p[0, 1] == 0.5
            else:
                assert (majority.prefers[0, 1] < 0) == bool(case["ref_majority"][pair])
            ties += tie
    assert ties


def test_votes_computed_by_hand() -> None:
    """Scores 1, 1 and -4 with the weights of groups of 3, 2 and 1: mean 1/6; five sixths of the weight for the first.

    With a selector that is undecided, 0, in place of the second: 3 + 1 of 6 for the first.
    """
    scores = torch.cat([matrix(2, [s]) for s in (1.0, 1.0, -4.0)])
    soft, majority = vote(scores, [3, 2, 1]), vote(scores, [3, 2, 1], "majority")
    assert soft.score[0, 1].item() == pytest.approx(1 / 6)
    assert soft.p[0, 1].item() == pytest.approx(1 / (1 + math.exp(-1 / 6)))
    assert majority.p[0, 1].item() == pytest.approx(5 / 6)
    assert soft.share[0, 1].item() == pytest.approx(5 / 6)
    scores[1] = 0
    assert vote(scores, [3, 2, 1], "majority").p[0, 1].item() == pytest.approx(4 / 6)
    equal = vote(torch.cat([matrix(2, [s]) for s in (0.1, 0.1, -1.0)]), [0.1, 0.2, 0.3], "majority")
    assert equal.prefers[0, 1] == -1, "0.1 + 0.2 is not 0.3, and still a tie, which the scores break"


def test_round_robin_and_knockout_computed_by_hand() -> None:
    """0 > 1 > 2 > 0 is a cycle, and 3 loses to all: the sums 2, -1, 4 and -5 decide. Of the first two, 0 wins."""
    verdict = vote(matrix(4, [3.0, -2.0, 1.0, 1.0, 1.0, 3.0]), [1.0])
    assert ranking(verdict) == [2, 0, 1, 3]
    assert ranking(verdict, 2) == [0, 1]
    assert knockout(verdict) == 2, "0 wins against 1 and loses to 2"
    assert knockout(verdict, 2) == 0
    assert ranking(vote(matrix(3, [0.0] * 3), [1.0])) == [0, 1, 2]
    assert knockout(vote(matrix(3, [0.0] * 3), [1.0])) == 0


def test_pairs_are_kept_whichever_answer_is_preferred() -> None:
    case = FEDBISCUIT["bug_comparison_dataset_drops_choice0"]
    made = []
    for choice in case["choices"]:
        (pair,), left_out = pairs(vote(matrix(2, [1.0 - 2 * choice]), [1.0]), ["a", "b"])
        assert (pair.chosen, pair.rejected) == (choice, 1 - choice)
        assert not left_out
        made.append(pair)
    assert len(made) == case["correct_len"]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_labels_do_not_depend_on_the_order_of_the_answers(data) -> None:
    n, u = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 3))
    draw = st.lists(st.integers(-3, 3).map(float), min_size=n * (n - 1) // 2, max_size=n * (n - 1) // 2)
    scores = torch.cat([matrix(n, data.draw(draw)) for _ in range(u)])
    place = data.draw(st.permutations(range(n)))
    for how in ("soft", "majority"):
        answers = [f"answer {i}" for i in range(n)]
        made, left_out = pairs(vote(scores, [1.0] * u, how), answers)
        moved, left_again = pairs(
            vote(scores[:, place][:, :, place], [1.0] * u, how), [answers[i] for i in place]
        )
        assert len(made) + left_out.total() == n * (n - 1) // 2
        assert left_out == left_again
        assert {(p.chosen, p.rejected, round(p.confidence, 9), round(p.agreement, 9)) for p in made} == {
            (place[p.chosen], place[p.rejected], round(p.confidence, 9), round(p.agreement, 9)) for p in moved
        }
        assert all(0.5 <= p.confidence <= 1 for p in made)


def test_omitted_pairs_are_counted_by_reason() -> None:
    """0 and 1 are the same; 0 over 2 at 2.0, over 3 at 0.1; 2 and 3 were never compared."""
    scores = matrix(4, [0.0, 2.0, 0.1, 2.0, 0.1, math.nan])
    answers = ["same", "same", "other", "third"]
    made, left_out = pairs(vote(scores, [1.0]), answers, min_confidence=0.6)
    assert [(p.chosen, p.rejected) for p in made] == [(0, 2), (1, 2)]
    assert left_out == {"the same answer twice": 1, "no preference": 1, "below rlft.min-confidence": 2}
    ((best,), _) = pairs(vote(scores, [1.0]), answers, "best-worst")
    assert (best.chosen, best.rejected) == (0, 2)
