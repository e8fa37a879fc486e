"""Fold: how the updates of a round become one, as they arrive."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Size, Tensor

from core.errors import TreeMismatch
from core.tree import Tree, flat, unflat
from core.types import Update

Trees = Mapping[str, Mapping[str, Tree]]  # adapter -> {"delta": ..., what else the client rule sends}
BLOCK = 1 << 15  # entries added at a time: they stay in cache for GROUP trees, and torch starts no threads
GROUP = 2


@dataclass(frozen=True)
class Merged:
    """A round's updates in order of client, their trees taken out and folded."""

    updates: tuple[Update, ...]
    trees: Trees


class Fold(Protocol):
    """Takes updates one by one, always in order of client: floating-point addition is not associative."""

    def add(self, update: Update) -> None: ...

    def result(self) -> Trees: ...


@dataclass(frozen=True)
class Share:
    """What an update counts for: its weight in the mean, and a factor on its trees (norm clipping)."""

    weight: float
    factor: float = 1.0


class Mean:
    """sum_k w_k f_k t_k / sum_k w_k for every tree of every adapter; holds one sum and at most GROUP trees."""

    def __init__(self, share: Callable[[Update, str], Share]) -> None:
        """share(update, name): what the tree of that name counts for."""
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
            adapter: {name: one.mean() for name, one in sums.items()} for adapter, sums in self.sums.items()
        }


class _Sum:
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
            self._empty()

    def mean(self) -> Tree:
        self._empty()
        assert self.weight > 0, self.weight
        return unflat(self.total.div_(self.weight), self.shapes)

    def _empty(self) -> None:
        # entry by entry this is the plain sum in the order given, whatever BLOCK and GROUP are
        for start in range(0, len(self.total), BLOCK):
            part = self.total[start : start + BLOCK]
            for numbers, factor in self.waiting:
                part.add_(numbers[start : start + BLOCK], alpha=factor)
        self.waiting.clear()
