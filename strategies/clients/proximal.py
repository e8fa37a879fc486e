"""FedProx on the client: a proximal term (mu/2) ||w - x||^2 towards the adapter at the start of the round.

Li et al. 2020, Eq. 2 (arXiv:1812.06127). Deviations: the client's own optimiser instead of an inexact solver; a
tensor that is the client's own is pulled to its value at the start of the round, since the server has none.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from core.local_steps import Correction
from core.types import Order
from strategies.clients.rule import DEFAULT_RULE, ClientRule, Memory, placed_like


def proximal(w: Tensor, x: Tensor, mu: float) -> tuple[Tensor, Tensor]:
    """Return the term (mu/2) ||w - x||^2 of one tensor and its gradient mu (w - x)."""
    drift = w - x
    return mu / 2 * drift.square().sum(), mu * drift


def fedprox_rule(mu: float, rule: ClientRule = DEFAULT_RULE) -> ClientRule:
    """Return `rule` with the proximal term; which tensors train and travel is unchanged."""

    def correct(order: Order, memory: Memory) -> Correction:
        return pull_to(rule.start(order, memory), mu)

    return replace(rule, correct=correct)


def pull_to(tree: Mapping[str, Tensor], mu: float) -> Correction:
    """Return a correction that adds the proximal term's gradient, towards `tree`, to each gradient."""
    start = placed_like(tree)
    return lambda name, w, gradient: gradient + proximal(w, start(name, w), mu)[1]
