"""Rounds of a strategy without a network: updates by hand, folded and merged as the loop does it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from core.tree import Tree, norm
from core.types import Metrics, ServerState, Update
from strategies.aggregation.fold import Merged
from strategies.base import Strategy
from tests.vectors import OPENFEDLLM


def vector(name: str) -> dict:
    return OPENFEDLLM[name]


def tree64(named: dict) -> Tree:
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in named.items()}


def merge(
    strategy: Strategy, state: ServerState, rnd: int, updates: Sequence[Update]
) -> tuple[ServerState, Metrics]:
    """What the loop does with a round's updates."""
    fold = strategy.fold(state, rnd, Path(tempfile.gettempdir()))
    for update in sorted(updates, key=lambda u: u.client):
        update.metrics.update({f"norm/{name}": norm(tree) for name, tree in update.trees.items()})
        fold.add(update)
    return strategy.merge_train(state, rnd, Merged(tuple(updates), fold.result()))


def close(got: Tree, want: Tree, atol: float = 1e-9) -> None:
    assert got.keys() == want.keys()
    for name, values in want.items():
        torch.testing.assert_close(got[name], values, rtol=0, atol=atol)
