"""Robust means: what a few hostile clients cannot move far. They need every update at once, so those wait on disk.

median, trimmed-mean: Yin et al. 2018 (arXiv:1803.01498), entry by entry. krum, multi-krum: Blanchard et al. 2017
(NeurIPS), whole updates. Weights are not used: a client could lie about them.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Size

from core.errors import TreeMismatch
from core.tree import flat, unflat
from core.types import Update
from strategies.kit.fold import Trees

BLOCK = 1 << 16  # entries of every update in memory at a time
Rows = Callable[[], Iterator[np.ndarray]]  # the updates as a matrix, (clients, BLOCK) at a time
Rule = Callable[[Rows, int], np.ndarray]  # (rows, clients) -> the combined update


def median(rows: Rows, clients: int) -> np.ndarray:
    return np.concatenate([np.median(part, axis=0) for part in rows()])


def trimmed_mean(share: float) -> Rule:
    """The mean of what is left when the floor(share K) smallest and largest of each entry are gone; share < 1/2."""

    def combine(rows: Rows, clients: int) -> np.ndarray:
        cut = int(share * clients)
        return np.concatenate([np.sort(part, axis=0)[cut : clients - cut].mean(axis=0) for part in rows()])

    return combine


def krum(share: float, *, several: bool) -> Rule:
    """The mean of the updates that lie closest to their K - f - 2 nearest others: one, or K - f (several).

    f = floor(share K) clients may be hostile; 2 f + 2 < K is what the proof asks for.
    """

    def combine(rows: Rows, clients: int) -> np.ndarray:
        hostile = int(share * clients)
        chosen = closest(rows, clients, hostile)[: clients - hostile if several else 1]
        return np.concatenate([part[sorted(chosen)].mean(axis=0) for part in rows()])

    return combine


def closest(rows: Rows, clients: int, hostile: int) -> list[int]:
    """The rows by the sum of the squared distances to their max(1, K - f - 2) nearest others, ascending."""
    gram = np.zeros((clients, clients))
    for part in rows():
        wide = part.astype(np.float64)
        gram += wide @ wide.T
    norms = np.diag(gram)
    distances = norms[:, None] + norms[None, :] - 2 * gram
    np.fill_diagonal(distances, np.inf)
    nearest = np.sort(distances, axis=1)[:, : max(1, clients - hostile - 2)]
    return [int(i) for i in np.argsort(nearest.sum(axis=1), kind="stable")]


RULES: Mapping[str, Callable[[float], Rule]] = {
    "median": lambda share: median,
    "trimmed-mean": trimmed_mean,
    "krum": lambda share: krum(share, several=False),
    "multi-krum": lambda share: krum(share, several=True),
}


class Robust:
    """A Fold that combines every adapter's deltas by a rule; one update is in memory at a time."""

    def __init__(self, rule: Rule, factor: Callable[[Update], float]) -> None:
        """factor(update): what its delta is scaled by before (norm clipping)."""
        self.rule, self.factor = rule, factor
        self.stacks: dict[str, _Stack] = {}

    def add(self, update: Update) -> None:
        delta = update.trees["delta"]
        shapes = {name: t.shape for name, t in delta.items()}
        stack = self.stacks.setdefault(update.adapter, _Stack(shapes))
        if stack.shapes != shapes:
            raise TreeMismatch("two updates of one adapter have different layouts")
        stack.push((flat(delta) * self.factor(update)).numpy())

    def result(self) -> Trees:
        return {adapter: {"delta": stack.combined(self.rule)} for adapter, stack in self.stacks.items()}


class _Stack:
    """The updates of one adapter, one behind the other in a file without a name."""

    def __init__(self, shapes: Mapping[str, Size]) -> None:
        self.shapes, self.count = shapes, 0
        self.size = sum(shape.numel() for shape in shapes.values())
        self.dtype: np.dtype = np.dtype(np.float32)
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  (closed by combined)

    def push(self, numbers: np.ndarray) -> None:
        self.count, self.dtype = self.count + 1, numbers.dtype
        self.file.write(numbers.tobytes())

    def combined(self, rule: Rule) -> dict[str, torch.Tensor]:
        with self.file as file:
            file.flush()
            if not self.size:
                return {}
            stack = np.memmap(file, self.dtype, "r", shape=(self.count, self.size))
            rows = lambda: (stack[:, i : i + BLOCK] for i in range(0, self.size, BLOCK))  # noqa: E731
            return unflat(torch.from_numpy(rule(rows, self.count).astype(self.dtype)), self.shapes)
