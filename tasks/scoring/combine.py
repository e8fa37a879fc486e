"""How much a client's explicit reward counts beside the implicit one: fitted to its pairs, drawn towards one.

Of the margins m of a client's pairs (chosen minus rejected), each divided by its root mean square, the score of a pair
is a m_im + b m_ex. (a, b) minimises sum log(1 + exp(-score)) + (RIDGE/2)((a - 1)^2 + (b - 1)^2): with few pairs the two
count alike, with hundreds the data decide.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 25.0  # a pair tells 1/8 or so: two hundred of them weigh as much as the prior
NEWTON = 30  # steps; the loss is strictly convex and nearly a parabola


@dataclass(frozen=True)
class Combination:
    """score = implicit * m_im + explicit * m_ex of raw margins."""

    implicit: float
    explicit: float
    weight: (
        float  # b/a: what the explicit reward counts where the implicit one counts 1, each in its own spread
    )

    @staticmethod
    def fit(implicit: Tensor, explicit: Tensor) -> "Combination":
        """From the margins of pairs, (N,) each; one that is zero everywhere counts for nothing."""
        margins = torch.stack([implicit, explicit], 1).double()
        sizes = margins.square().mean(0).sqrt() if len(margins) else torch.zeros(2)
        safe = torch.where(sizes > 0, sizes, math.inf)
        weights = _ridge_logistic(margins / safe) / safe
        a, b = (weights * sizes).tolist()
        return Combination(float(weights[0]), float(weights[1]), b / a if a else math.inf)

    @property
    def factor(self) -> float:
        """lambda of implicit + lambda explicit, which ranks as the score does if the implicit reward counts."""
        return self.explicit / self.implicit if self.implicit > 0 else math.inf

    def score(self, implicit: Tensor, explicit: Tensor) -> Tensor:
        return self.implicit * implicit + self.explicit * explicit


def crossed(implicit: Tensor, explicit: Tensor) -> Tensor:
    """Every pair's score by what the other half of the pairs says, (N,): no pair has a say in its own."""
    out = torch.empty_like(implicit)
    even = torch.arange(len(implicit)) % 2 == 0
    for part in (even, ~even):
        out[part] = Combination.fit(implicit[~part], explicit[~part]).score(implicit[part], explicit[part])
    return out


def _ridge_logistic(x: Tensor) -> Tensor:
    """(a, b) for scaled margins (N, 2), by Newton's method from (1, 1)."""
    w = prior = torch.ones(2, dtype=torch.float64)
    for _ in range(NEWTON):
        wrong = torch.sigmoid(-(x @ w))
        gradient = RIDGE * (w - prior) - x.T @ wrong
        curvature = RIDGE * torch.eye(2, dtype=torch.float64) + (x.T * (wrong * (1 - wrong))) @ x
        w = w - torch.linalg.solve(curvature, gradient)
    return w
