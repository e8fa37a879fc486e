"""Combine the scores of several selectors for the answers to one prompt: vote, ranking, best of n, labelled pairs.

A score is the log-odds that one answer is better than another, averaged over both orders of the two, so that no label
depends on the order. An exact tie has no label.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

How = Literal["soft", "majority"]


@dataclass(frozen=True)
class Verdict:
    """The result of a vote on n answers; every tensor is (n, n), for answer i against answer j."""

    prefers: Tensor  # 1 if i is preferred, -1 if j is, 0 for no preference
    p: Tensor  # probability that i is the better answer, according to the vote
    score: Tensor  # mean log-odds; 0 without a score
    share: Tensor  # share of the weight of the selectors that prefer i


@dataclass(frozen=True)
class Pair:
    """A labelled pair of answers."""

    chosen: int  # index of the answer
    rejected: int
    confidence: float  # of the vote, from 1/2 to 1
    agreement: float  # share of the selectors' weight that prefers the chosen one


def vote(scores: Tensor, weights: Sequence[float], how: How = "soft") -> Verdict:
    """Combine the scores of U selectors by a weighted vote.

    soft: p is the sigmoid of the weighted mean score. majority: p is the weighted share of the selectors, and an
    undecided selector counts as half for each answer; a tie is decided by the soft vote, with p = 1/2 (Wu et al. decide
    for the first answer).

    Args:
        scores: (U, n, n) antisymmetric log-odds of each selector, nan where it has no score.
        weights: (U,) weights of the selectors.
        how: the rule.
    """
    w = (torch.tensor(weights, dtype=torch.float64) / sum(weights))[:, None, None]
    scores = scores.double().nan_to_num(nan=0.0)
    mean, share = (w * scores).sum(0), (w * (scores.sign() + 1) / 2).sum(0)
    if how == "soft":
        return Verdict(mean.sign(), torch.sigmoid(mean), mean, share)
    lead = share - share.T
    lead = torch.where(lead.abs() < 1e-9, 0.0, lead)  # rounding of weights with equal sums on both sides
    return Verdict(torch.where(lead == 0, mean, lead).sign(), (1 + lead) / 2, mean, share)


def ranking(verdict: Verdict, first: int | None = None) -> list[int]:
    """The indices of the answers (or of the `first` ones), best first, by a full round-robin.

    The order is by number of comparisons won (Copeland), then by sum of scores (Borda), then by index.
    """
    n = len(verdict.prefers) if first is None else first
    wins, sums = verdict.prefers[:n, :n].sum(1).tolist(), verdict.score[:n, :n].sum(1).tolist()
    return sorted(range(n), key=lambda i: (-wins[i], -sums[i], i))


def knockout(verdict: Verdict, first: int | None = None) -> int:
    """The winner if each answer in turn is compared with the best so far, n - 1 comparisons; a tie keeps the best."""
    n, best = len(verdict.prefers) if first is None else first, 0
    for i in range(1, n):
        best = i if verdict.prefers[i, best] > 0 else best
    return best


def pairs(
    verdict: Verdict,
    answers: Sequence[str],
    which: Literal["all", "best-worst"] = "all",
    min_confidence: float = 0.5,
) -> tuple[list[Pair], Counter[str]]:
    """The labelled pairs of a prompt's answers, and the number of omitted pairs by reason."""
    order = ranking(verdict)
    n = len(answers)
    candidates = (
        [(i, j) for i in range(n) for j in range(i + 1, n)] if which == "all" else [(order[0], order[-1])]
    )
    labelled: list[Pair] = []
    left_out: Counter[str] = Counter()
    for i, j in candidates:
        label = int(verdict.prefers[i, j])
        better, worse = (i, j) if label >= 0 else (j, i)
        confidence = float(verdict.p[better, worse])
        if answers[i] == answers[j]:
            left_out["the same answer twice"] += 1
        elif not label:
            left_out["no preference"] += 1
        elif confidence < min_confidence:
            left_out["below rlft.min-confidence"] += 1
        else:
            labelled.append(Pair(better, worse, confidence, float(verdict.share[better, worse])))
    return labelled, left_out
