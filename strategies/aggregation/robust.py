"""Robust means, which a few hostile clients cannot move far. They need all updates at once, so these are kept on disk.

median, trimmed-mean: Yin et al. 2018 (arXiv:1803.01498), entry by entry. krum, multi-krum: Blanchard et al. 2017
(NeurIPS), whole updates. Weights are not used: a client could lie about them. With too few updates a rule gives no
protection; `RobustRule.weakness` tells, before a run and in every round.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Size

from core import store
from core.errors import TreeMismatch
from core.tree import flat, unflat
from core.types import Update
from strategies.aggregation.fold import Trees
from strategies.rounds.spool import spool_file

BLOCK = 1 << 16  # entries of every update in memory at a time
Rows = Callable[[], Iterator[np.ndarray]]  # the updates as a matrix, (clients, BLOCK) at a time
Combine = Callable[[Rows, int], np.ndarray]  # (rows, clients) -> the combined update
MAX_CLIENTS = 1000  # where `fewest` stops looking


@dataclass(frozen=True)
class RobustRule:
    """How a round's updates are combined, and when that gives no protection.

    weakness(clients): why the rule gives no protection with so many updates; "" if it does.
    """

    combine: Combine
    weakness: Callable[[int], str]

    def fewest(self, clients: int) -> int | None:
        """Return the smallest number of updates above `clients` with which the rule protects, up to MAX_CLIENTS."""
        return next((n for n in range(clients + 1, MAX_CLIENTS + 1) if not self.weakness(n)), None)


def hostile(share: float, clients: int) -> int:
    """Return f = floor(share K) with the share as written in decimal: in binary 0.29 * 100 is just below 29."""
    return int(Fraction(repr(share)) * clients)


def median() -> RobustRule:
    def combine(rows: Rows, clients: int) -> np.ndarray:
        return np.concatenate([np.median(part, axis=0) for part in rows()])

    return RobustRule(
        combine, lambda clients: "" if clients > 2 else f"the median of {clients} is their mean"
    )


def trimmed_mean(share: float) -> RobustRule:
    """The mean of each entry without its f = floor(share K) smallest and f largest values; share < 1/2."""

    def combine(rows: Rows, clients: int) -> np.ndarray:
        f = hostile(share, clients)
        return np.concatenate([np.sort(part, axis=0)[f : clients - f].mean(axis=0) for part in rows()])

    def weakness(clients: int) -> str:
        return (
            "" if hostile(share, clients) else f"floor({share:g} x {clients}) = 0 values are cut at each end"
        )

    return RobustRule(combine, weakness)


def krum(share: float, *, several: bool) -> RobustRule:
    """The mean of the updates that lie closest to their K - f - 2 nearest others: one, or K - f (several).

    f = floor(share K) clients may be hostile. The proof requires 2 f + 2 < K (Proposition 1).
    """

    def combine(rows: Rows, clients: int) -> np.ndarray:
        f = hostile(share, clients)
        chosen = most_central(rows, clients, f)[: clients - f if several else 1]
        return np.concatenate([part[sorted(chosen)].mean(axis=0) for part in rows()])

    def weakness(clients: int) -> str:
        f = hostile(share, clients)
        if not f:
            return f"floor({share:g} x {clients}) = 0 clients are assumed hostile"
        return "" if 2 * f + 2 < clients else f"2 f + 2 < K does not hold for f = {f} and K = {clients}"

    return RobustRule(combine, weakness)


def most_central(rows: Rows, clients: int, f: int) -> list[int]:
    """Return row indices by ascending sum of squared distances to the max(1, K - f - 2) nearest other rows."""
    gram = np.zeros((clients, clients))
    for part in rows():
        entries = part.astype(np.float64)
        gram += entries @ entries.T
    norms = np.diag(gram)
    distances = norms[:, None] + norms[None, :] - 2 * gram
    np.fill_diagonal(distances, np.inf)
    nearest = np.sort(distances, axis=1)[:, : max(1, clients - f - 2)]
    return [int(i) for i in np.argsort(nearest.sum(axis=1), kind="stable")]


RULES: Mapping[str, Callable[[float], RobustRule]] = {
    "median": lambda share: median(),
    "trimmed-mean": trimmed_mean,
    "krum": lambda share: krum(share, several=False),
    "multi-krum": lambda share: krum(share, several=True),
}


class Robust:
    """A Fold that combines every adapter's deltas by a rule; one update is in memory at a time."""

    def __init__(self, rule: RobustRule, factor: Callable[[Update], float], spool: Path) -> None:
        """factor(update): scales its delta first (norm clipping). spool: a folder for the round's deltas."""
        self.rule, self.factor, self.spool = rule, factor, spool
        self.stacks: dict[str, _Stack] = {}

    def add(self, update: Update) -> None:
        delta = update.trees["delta"]
        shapes = {name: t.shape for name, t in delta.items()}
        if update.adapter not in self.stacks:
            self.stacks[update.adapter] = _Stack(shapes, self.spool)
        stack = self.stacks[update.adapter]
        if stack.shapes != shapes:
            raise TreeMismatch("two updates of one adapter have different layouts")
        stack.push((flat(delta) * self.factor(update)).numpy())

    def result(self) -> Trees:
        return {adapter: {"delta": stack.combined(self.rule)} for adapter, stack in self.stacks.items()}


class _Stack:
    """The updates of one adapter, one after the other in a temporary file."""

    def __init__(self, shapes: Mapping[str, Size], spool: Path) -> None:
        self.shapes, self.spool, self.count = shapes, spool, 0
        self.size = sum(shape.numel() for shape in shapes.values())
        self.dtype: np.dtype = np.dtype(np.float32)
        self.file = spool_file(spool)  # closed by combined

    def push(self, numbers: np.ndarray) -> None:
        self.count, self.dtype = self.count + 1, numbers.dtype
        with store.writing(self.spool):
            self.file.write(numbers.tobytes())
            self.file.flush()

    def combined(self, rule: RobustRule) -> dict[str, torch.Tensor]:
        with self.file as file:
            if not self.size:
                return {}
            stack = np.memmap(file, self.dtype, "r", shape=(self.count, self.size))
            rows = lambda: (stack[:, i : i + BLOCK] for i in range(0, self.size, BLOCK))  # noqa: E731
            return unflat(torch.from_numpy(rule.combine(rows, self.count).astype(self.dtype)), self.shapes)
