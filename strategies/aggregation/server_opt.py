"""ServerOpt: server optimisers, which move the adapter by the mean delta, each in three published variants.

x is the adapter, D the mean of the clients' deltas; m and v start at 0 unless stated; all operations are elementwise.
paper: Hsu et al. 2019 (arXiv:1909.06335), Reddi et al. 2021, Algorithm 2 (arXiv:2003.00295).
openfedllm: rui-ye/OpenFedLLM. flower: flwr 1.39. docs/aggregators.md compares them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from core.errors import ConfigError
from core.tree import Tree, add, scale, zip_map

VARIANTS = ("paper", "openfedllm", "flower")
Slots = Mapping[str, Tree]  # the optimiser's memory: {"m": ..., "v": ...}; empty before the first round


@dataclass(frozen=True)
class ServerOpt:
    """`step(x, D, slots, rnd)` is (next x, next slots); rnd counts from 1."""

    step: Callable[[Tree, Tree, Slots, int], tuple[Tree, Slots]]


def check_variant(variant: str) -> str:
    """Return `variant`. Raises ConfigError if it is not one of VARIANTS."""
    if variant not in VARIANTS:
        raise ConfigError(f"strategy.variant must be one of {' | '.join(VARIANTS)}, got {variant!r}")
    return variant


def plain(eta: float) -> ServerOpt:
    """Return the step x + eta D."""
    return ServerOpt(lambda x, d, slots, rnd: (add(x, scale(d, eta)), {}))


def momentum(variant: str, eta: float, beta: float) -> ServerOpt:
    """Return the step x + eta m. m = beta m + D; in openfedllm m = D in round 1, then beta m + (1 - beta) D."""

    def step(x: Tree, d: Tree, slots: Slots, rnd: int) -> tuple[Tree, Slots]:
        if "m" not in slots:
            m = d
        elif variant == "openfedllm":
            m = zip_map(lambda old, new: beta * old + (1 - beta) * new, slots["m"], d)
        else:
            m = zip_map(lambda old, new: beta * old + new, slots["m"], d)
        return add(x, scale(m, eta)), {"m": m}

    return ServerOpt(step)


Second = Callable[[Tensor, Tensor], Tensor]  # (v, squared) -> v


def adagrad(v: Tensor, squared: Tensor) -> Tensor:
    return v + squared


def yogi(beta_2: float) -> Second:
    return lambda v, squared: v - (1 - beta_2) * squared * torch.sign(v - squared)


def adam(beta_2: float) -> Second:
    return lambda v, squared: beta_2 * v + (1 - beta_2) * squared


def adaptive(
    variant: str,
    second: Second,
    *,
    eta: float,
    tau: float,
    beta_1: float,
    correction: Callable[[int], float] | None = None,
) -> ServerOpt:
    """Return the step x + eta m / (sqrt(v) + tau), with m = beta_1 m + (1 - beta_1) D and v = second(v, D^2).

    openfedllm: m = D in round 1, and v takes m^2 where the others take D^2. v starts at tau^2, in flower at 0.
    correction(rnd): a factor on eta. None: 1.
    """

    def step(x: Tree, d: Tree, slots: Slots, rnd: int) -> tuple[Tree, Slots]:
        if "m" in slots:
            m = zip_map(lambda old, new: beta_1 * old + (1 - beta_1) * new, slots["m"], d)
        else:
            m = d if variant == "openfedllm" else scale(d, 1 - beta_1)
        start = 0.0 if variant == "flower" else tau**2
        v = slots.get("v") or {name: torch.full_like(t, start) for name, t in x.items()}
        v = zip_map(lambda old, new: second(old, new.square()), v, m if variant == "openfedllm" else d)
        rate = eta * (correction(rnd) if correction else 1.0)
        moved = zip_map(lambda t, mt, vt: t + rate * mt / (vt.sqrt() + tau), x, m, v)
        return moved, {"m": m, "v": v}

    return ServerOpt(step)


def flower_adam_correction(beta_1: float, beta_2: float) -> Callable[[int], float]:
    """Return Adam's bias correction as in flwr, whose exponent is rnd + 1 where Kingma and Ba have rnd."""
    return lambda rnd: sqrt(1 - beta_2 ** (rnd + 1)) / (1 - beta_1 ** (rnd + 1))
