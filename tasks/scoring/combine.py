"""Combine the implicit and the explicit reward of a client, with weights fitted to its pairs.

The margins m (chosen minus rejected) of a client's pairs are divided by their root mean square, for each reward, and
the score of a pair is a m_im + b m_ex. (a, b) minimises sum log(1 + exp(-score)) + (RIDGE/2)((a - 1)^2 + (b - 1)^2):
with few pairs both rewards have equal weight, with hundreds the data determine the weights.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 25.0  # a pair has a curvature of about 1/8, so that 200 pairs weigh as much as the prior
NEWTON_STEPS = 30  # the loss is strictly convex and nearly quadratic


@dataclass(frozen=True)
class Combination:
    """score = implicit * m_im + explicit * m_ex of raw margins."""

    implicit: float
    explicit: float
    weight: float  # b/a, the weight of the explicit reward relative to the implicit one, both normalised

    @staticmethod
    def fit(implicit: Tensor, explicit: Tensor) -> "Combination":
        """Fit the weights to margins of pairs, (N,) each; a reward whose margins are all zero has weight 0."""
        margins = torch.stack([implicit, explicit], 1).double()
        sizes = margins.square().mean(0).sqrt() if len(margins) else torch.zeros(2)
        safe = torch.where(sizes > 0, sizes, math.inf)
        weights = _ridge_logistic(margins / safe) / safe
        a, b = (weights * sizes).tolist()
        return Combination(float(weights[0]), float(weights[1]), b / a if a else math.inf)

    @property
    def factor(self) -> float:
        """lambda of implicit + lambda explicit, which ranks like the score; infinite if `implicit` is not positive."""
        return self.explicit / self.implicit if self.implicit > 0 else math.inf

    def score(self, implicit: Tensor, explicit: Tensor) -> Tensor:
        return self.implicit * implicit + self.explicit * explicit


def cross_fitted_scores(implicit: Tensor, explicit: Tensor) -> Tensor:
    """Scores of pairs, (N,), with weights fitted to the other half of the pairs (2-fold cross-fitting)."""
    out = torch.empty_like(implicit)
    even = torch.arange(len(implicit)) % 2 == 0
    for part in (even, ~even):
        out[part] = Combination.fit(implicit[~part], explicit[~part]).score(implicit[part], explicit[part])
    return out


def _ridge_logistic(x: Tensor) -> Tensor:
    """(a, b) for scaled margins (N, 2), by Newton's method from (1, 1)."""
    w = prior = torch.ones(2, dtype=torch.float64)
    for _ in range(NEWTON_STEPS):
        error = torch.sigmoid(-(x @ w))
        gradient = RIDGE * (w - prior) - x.T @ error
        curvature = RIDGE * torch.eye(2, dtype=torch.float64) + (x.T * (error * (1 - error))) @ x
        w = w - torch.linalg.solve(curvature, gradient)
    return w
