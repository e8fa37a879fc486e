"""Fold: aggregation of a round's updates as they arrive."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Size, Tensor

from core.errors import TreeMismatch
from core.tree import Tree, flat, unflat
from core.types import Update

Trees = Mapping[str, Mapping[str, Tree]]  # adapter -> {"delta": ..., other trees that the client rule sends}
BLOCK = 1 << 15  # entries per addition: they stay in cache for GROUP trees, and torch starts no threads
GROUP = 2  # trees that are added in one pass over the sum


@dataclass(frozen=True)
class Merged:
    """A round's updates in order of client, without trees, and the aggregate of their trees."""

    updates: tuple[Update, ...]
    trees: Trees


class Fold(Protocol):
    """Takes updates one by one, always in order of client, because floating-point addition is not associative."""

    def add(self, update: Update) -> None: ...

    def result(self) -> Trees: ...


@dataclass(frozen=True)
class Share:
    """An update's weight in the mean, and a factor on its trees (norm clipping)."""

    weight: float
    factor: float = 1.0


class Mean:
    """sum_k w_k f_k t_k / sum_k w_k for every tree of every adapter; holds one sum and at most GROUP trees."""

    def __init__(self, share: Callable[[Update, str], Share]) -> None:
        """share(update, name): the Share of the update's tree of that name."""
        self.share = share
        self.sums: dict[str, dict[str, _Sum]] = {}

    def add(self, update: Update) -> None:
        sums = self.sums.setdefault(update.adapter, {})
        for name, tree in update.trees.items():
            if name not in sums:
                sums[name] = _Sum(tree)
            sums[name].add(tree, self.share(update, name))

    def result(self) -> Trees:
        return {
            adapter: {name: total.mean() for name, total in sums.items()}
            for adapter, sums in self.sums.items()
        }


class _Sum:
    """The weighted sum of trees of one layout."""

    def __init__(self, like: Tree) -> None:
        self.shapes: dict[str, Size] = {name: t.shape for name, t in like.items()}
        self.total = torch.zeros_like(flat(like))
        self.weight = 0.0
        self.waiting: list[tuple[Tensor, float]] = []

    def add(self, tree: Tree, share: Share) -> None:
        if {name: t.shape for name, t in tree.items()} != self.shapes:
            raise TreeMismatch("two updates of one adapter have different layouts")
        self.weight += share.weight
        self.waiting.append((flat(tree), share.weight * share.factor))
        if len(self.waiting) == GROUP:
            self._add_waiting()

    def mean(self) -> Tree:
        self._add_waiting()
        assert self.weight > 0, self.weight
        return unflat(self.total.div_(self.weight), self.shapes)

    def _add_waiting(self) -> None:
        # each entry is the plain sum in the order of arrival, whatever BLOCK and GROUP are
        for start in range(0, len(self.total), BLOCK):
            part = self.total[start : start + BLOCK]
            for numbers, factor in self.waiting:
                part.add_(numbers[start : start + BLOCK], alpha=factor)
        self.waiting.clear()
