"""ClientRule: what an algorithm asks of a client, as values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from core.tree import Tree, sub
from core.types import Order

Memory = Mapping[str, Tree]  # a client's private trees; {"own": ...} is laid over the adapter it receives
Correct = Callable[[str, Tensor, Tensor], Tensor]  # (name, parameter, gradient) -> gradient


@dataclass(frozen=True)
class Outcome:
    """One local training: the adapter before and after it, and its optimiser steps."""

    before: Tree
    after: Tree
    steps: int


def share_all(name: str) -> bool:
    return True


def no_correction(order: Order, memory: Memory) -> Correct | None:
    return None


@dataclass(frozen=True)
class ClientRule:
    """What leaves the client, what bends its gradient, what it keeps.

    `shares(name)`: does this tensor leave the client? `correct(order, memory)`: a change of each gradient,
    or None. A tensor that is not shared never leaves; it is the client's `own` and is recalled next time.
    """

    shares: Callable[[str], bool] = share_all
    correct: Callable[[Order, Memory], Correct | None] = no_correction

    def finish(
        self, order: Order, memory: Memory, outcome: Outcome
    ) -> tuple[dict[str, Tree], dict[str, Tree]]:
        """(trees to send, trees to keep). `delta` is after - before of what is shared."""
        shared = {n: t for n, t in outcome.after.items() if self.shares(n)}
        own = {n: t for n, t in outcome.after.items() if not self.shares(n)}
        delta = sub(shared, {n: outcome.before[n] for n in shared})
        return {"delta": delta}, ({"own": own} if own else {})
