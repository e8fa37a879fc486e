"""ClientRule: what an algorithm asks of a client, as values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from core.factors import is_private
from core.tree import Tree, sub
from core.types import Order

Memory = Mapping[str, Tree]  # a client's private trees: {"own": ...}, and what the algorithm keeps
Trees = dict[str, Tree]
FINISH = "finish-steps"  # knob of an evaluation's order: steps on the client's own rows before it
PERSONAL = "personal"  # the tree of a second adapter in a client's memory
Correct = Callable[[str, Tensor, Tensor], Tensor]  # (name, parameter, gradient) -> gradient
AfterStep = Callable[[str, Tensor], None]  # (name, parameter), which it changes in place


@dataclass(frozen=True)
class Outcome:
    """One local training: the adapter before and after it, its optimiser steps and their rate.

    gradients: the mean over the steps of the gradient as backward left it, before any correction and clipping;
    None unless the rule wants it. It has the tensors that train.
    """

    before: Tree
    after: Tree
    steps: int
    learning_rate: float
    gradients: Tree | None = None


def share_all(name: str, rnd: int) -> bool:
    return True


def train_all(name: str, rnd: int) -> bool:
    return True


def no_correction(order: Order, memory: Memory) -> Correct | None:
    return None


def nothing_after(order: Order, memory: Memory, learning_rate: float) -> AfterStep | None:
    return None


def nothing_more(order: Order, memory: Memory, outcome: Outcome) -> tuple[Trees, Trees]:
    return {}, {}


@dataclass(frozen=True)
class ClientRule:
    """Which tensors train and travel, what bends a step, what a client keeps.

    `trains(name, rnd)`: does this tensor learn in this round? If not, its value stays to the last bit.
    `shares(name, rnd)`: does its change leave the client? What trains and is not shared is the client's `own`: it
    never leaves, and is recalled next time. What neither trains nor is shared comes with the order, unless it
    became the client's own in an earlier round.
    `correct(order, memory)`: a change of each gradient before clipping, or None.
    `after_step(order, memory, learning_rate)`: a change of each tensor after each optimiser step, or None.
    `adds(order, memory, outcome)`: (trees to send, trees to keep) besides `delta` and `own`; it sees the
    outcome of the tensors that train and are shared. `sends` names all the trees that travel.
    `aside`: the share of its training rows on which a client compares adapters, and never trains.
    `opening`: steps on its private parts alone with which a client begins that joins when others have trained.
    `pull(order)`: a change of the gradients of a second, personal adapter, which the client trains beside the one it
    sends, with the same steps, and is scored with; None: there is none.
    Whatever an algorithm says, a private tensor learns and never leaves: `learns` and `leaves` have the last word.
    """

    shares: Callable[[str, int], bool] = share_all
    trains: Callable[[str, int], bool] = train_all
    correct: Callable[[Order, Memory], Correct | None] = no_correction
    after_step: Callable[[Order, Memory, float], AfterStep | None] = nothing_after
    wants_gradients: bool = False
    adds: Callable[[Order, Memory, Outcome], tuple[Trees, Trees]] = nothing_more
    sends: tuple[str, ...] = ("delta",)
    aside: float = 0.0
    opening: int = 0
    pull: Callable[[Order], Correct] | None = None

    @property
    def plain(self) -> bool:
        """Whether every tensor learns by the gradient of the loss alone, and nothing else is trained."""
        bends = self.correct is not no_correction or self.after_step is not nothing_after
        return self.trains is train_all and not bends and not self.wants_gradients and not self.pull

    def leaves(self, name: str, rnd: int) -> bool:
        """Does this tensor's change leave the client?"""
        return not is_private(name) and self.shares(name, rnd)

    def learns(self, name: str, rnd: int) -> bool:
        return is_private(name) or self.trains(name, rnd)

    def start(self, order: Order, memory: Memory) -> Tree:
        """The adapter a client trains: the order's, under what is its own."""
        return {**order.trees[order.adapter], **self._own(order, memory)}

    def scored(self, order: Order, memory: Memory) -> Tree:
        """The adapter a client would use itself."""
        return dict(memory[PERSONAL]) if self.pull and PERSONAL in memory else self.start(order, memory)

    def finish(self, order: Order, memory: Memory, outcome: Outcome) -> tuple[Trees, Trees]:
        """(trees to send, trees to keep). `delta` is after - before of what is shared."""
        rnd = int(order.knobs["rnd"])
        shared = {n: t for n, t in outcome.after.items() if self.leaves(n, rnd)}
        trained = {n for n in outcome.after if self.learns(n, rnd)}
        own = {n: outcome.after[n] for n in outcome.after if n in trained and n not in shared}
        own = {**self._own(order, memory), **own}
        sent, kept = self.adds(order, memory, _only(outcome, trained & shared.keys()))
        delta = sub(shared, {n: outcome.before[n] for n in shared})
        return {"delta": delta, **sent}, {**({"own": own} if own else {}), **kept}

    def _own(self, order: Order, memory: Memory) -> Tree:
        """A tensor that is shared in this round comes from the server, whoever's it was before."""
        own = memory.get("own", {})
        return {n: t for n, t in own.items() if not self.leaves(n, int(order.knobs["rnd"]))}


PLAIN = ClientRule()


def beside(tree: Mapping[str, Tensor]) -> Callable[[str, Tensor], Tensor]:
    """`tree`'s tensors on the device and in the type of another; each is moved there once."""
    moved: Tree = {}

    def placed(name: str, like: Tensor) -> Tensor:
        if name not in moved:
            moved[name] = tree[name].to(like)
        return moved[name]

    return placed


def _only(outcome: Outcome, names: set[str]) -> Outcome:
    def some(tree: Tree) -> Tree:
        return {n: t for n, t in tree.items() if n in names}

    gradients = None if outcome.gradients is None else some(outcome.gradients)
    return replace(outcome, before=some(outcome.before), after=some(outcome.after), gradients=gradients)
