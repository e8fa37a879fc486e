"""What several selectors say of the answers to one prompt: a vote, a ranking, the best of n, pairs to learn from.

A score is the log-odds that one answer is better than another, with both orders of the two already taken together, so
that no label depends on which stood first. An exact tie has no label.
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
    """The vote on n answers; all (n, n), of answer i against answer j."""

    prefers: Tensor  # 1, -1 or 0: nobody knows
    p: Tensor  # the probability that i is the better one, as the vote sees it
    score: Tensor  # mean log-odds; 0 where nobody knows
    share: Tensor  # of the weight of the selectors that prefer i


@dataclass(frozen=True)
class Pair:
    chosen: int  # place of the answer
    rejected: int
    confidence: float  # of the vote, from 1/2 to 1
    agreement: float  # share of the selectors' weight that prefers the chosen one


def vote(scores: Tensor, weights: Sequence[float], how: How = "soft") -> Verdict:
    """scores: (U, n, n) antisymmetric log-odds of each selector, nan where it could not be asked; weights: (U,).

    soft: p = sigmoid of the weighted mean. majority: p is the share of the weight, a selector that is undecided
    being half for each; a tie is broken by the soft vote, and its p stays 1/2 (Wu et al.: for the first answer).
    """
    w = (torch.tensor(weights, dtype=torch.float64) / sum(weights))[:, None, None]
    scores = scores.double().nan_to_num(nan=0.0)
    mean, share = (w * scores).sum(0), (w * (scores.sign() + 1) / 2).sum(0)
    if how == "soft":
        return Verdict(mean.sign(), torch.sigmoid(mean), mean, share)
    lead = share - share.T
    lead = torch.where(lead.abs() < 1e-9, 0.0, lead)  # weights that add up to the same on both sides
    return Verdict(torch.where(lead == 0, mean, lead).sign(), (1 + lead) / 2, mean, share)


def ranking(verdict: Verdict, first: int | None = None) -> list[int]:
    """The answers (or the first few), best first, by a full round-robin: who wins more comparisons (Copeland), then
    who has the larger sum of scores (Borda), then who stands first."""
    n = len(verdict.prefers) if first is None else first
    wins, sums = verdict.prefers[:n, :n].sum(1).tolist(), verdict.score[:n, :n].sum(1).tolist()
    return sorted(range(n), key=lambda i: (-wins[i], -sums[i], i))


def knockout(verdict: Verdict, first: int | None = None) -> int:
    """The winner where each answer in turn meets the best so far, n - 1 comparisons; a tie keeps who stands."""
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
    """The labelled pairs of a prompt's answers, and how many were left out, by reason."""
    order = ranking(verdict)
    n = len(answers)
    asked = [(i, j) for i in range(n) for j in range(i + 1, n)] if which == "all" else [(order[0], order[-1])]
    made: list[Pair] = []
    left_out: Counter[str] = Counter()
    for i, j in asked:
        label = int(verdict.prefers[i, j])
        better, other = (i, j) if label >= 0 else (j, i)
        confidence = float(verdict.p[better, other])
        if answers[i] == answers[j]:
            left_out["the same answer twice"] += 1
        elif not label:
            left_out["no preference"] += 1
        elif confidence < min_confidence:
            left_out["below rlft.min-confidence"] += 1
        else:
            made.append(Pair(better, other, confidence, float(verdict.share[better, other])))
    return made, left_out
