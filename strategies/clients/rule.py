"""ClientRule: how an algorithm changes local training, and which tensors travel and stay."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from core.factors import is_private
from core.local_steps import AfterStep, Correction
from core.tree import Tree, sub
from core.types import Order

Memory = Mapping[str, Tree]  # a client's private trees: {"own": ...} and the algorithm's own
Trees = dict[str, Tree]
FINISH = "finish-steps"  # option of an evaluation order: optimiser steps on the client's rows before it
PERSONAL = "personal"  # name of the second, personal adapter in a client's memory
Selects = Callable[[str, int], bool]  # (name of a tensor, round)


@dataclass(frozen=True)
class Outcome:
    """The result of one local training: the adapter before and after, the optimiser steps and their learning rate.

    gradients: the mean over the steps of the raw gradient, before any correction and clipping, of the tensors that
    train; None unless the rule has wants_gradients.
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


def no_correction(order: Order, memory: Memory) -> Correction | None:
    return None


def no_change_after_step(order: Order, memory: Memory, learning_rate: float) -> AfterStep | None:
    return None


def no_extra_trees(order: Order, memory: Memory, outcome: Outcome) -> tuple[Trees, Trees]:
    return {}, {}


@dataclass(frozen=True)
class ClientRule:
    """Which tensors train and travel, how a local step is modified, and what a client remembers.

    trains(name, rnd): whether the tensor trains in the round; if not, its value does not change by a bit.
    shares(name, rnd): whether the tensor's change is sent. A tensor that trains and is not shared is the client's
        "own": it stays in the client's memory and is recalled in its next round. A tensor that neither trains nor is
        shared comes with the order, unless it became the client's own in an earlier round.
    correct(order, memory): a function that modifies each gradient before clipping, or None.
    after_step(order, memory, learning_rate): a function that modifies each tensor after each optimiser step, or None.
    wants_gradients: whether the outcome must hold the mean raw gradient.
    extra_trees(order, memory, outcome): (trees to send, trees to remember) besides "delta" and "own". Its outcome
        holds only the tensors that train and are shared.
    sends: the names of all trees that travel.
    comparison_share: the share of a client's training rows on which it compares adapters and never trains.
    newcomer_steps: steps on its private parts alone that a client takes first if it joins after the first round.
    pull(order): a function that modifies the gradients of a second, personal adapter. The client trains it with as
        many steps as the adapter that it sends, and is scored with it. None: there is no such adapter.

    A private tensor always trains and never leaves, whatever `trains` and `shares` return: use `learns` and `leaves`,
    which enforce that.
    """

    shares: Selects = share_all
    trains: Selects = train_all
    correct: Callable[[Order, Memory], Correction | None] = no_correction
    after_step: Callable[[Order, Memory, float], AfterStep | None] = no_change_after_step
    wants_gradients: bool = False
    extra_trees: Callable[[Order, Memory, Outcome], tuple[Trees, Trees]] = no_extra_trees
    sends: tuple[str, ...] = ("delta",)
    comparison_share: float = 0.0
    newcomer_steps: int = 0
    pull: Callable[[Order], Correction] | None = None

    def within(self, limits: "ClientRule") -> "ClientRule":
        """Return this rule for the tensors that `limits` trains and shares as well."""
        return replace(
            self, trains=_both(self.trains, limits.trains), shares=_both(self.shares, limits.shares)
        )

    @property
    def plain(self) -> bool:
        """Whether local training is unmodified: all tensors train, by the gradient of the loss alone."""
        modified = self.correct is not no_correction or self.after_step is not no_change_after_step
        return self.trains is train_all and not modified and not self.wants_gradients and not self.pull

    def leaves(self, name: str, rnd: int) -> bool:
        """Whether the tensor's change leaves the client in the round; a private tensor's never does."""
        return not is_private(name) and self.shares(name, rnd)

    def learns(self, name: str, rnd: int) -> bool:
        """Whether the tensor trains in the round; a private tensor always does."""
        return is_private(name) or self.trains(name, rnd)

    def start(self, order: Order, memory: Memory) -> Tree:
        """Return the adapter that local training starts from: the order's, overridden by the client's own tensors."""
        return {**order.trees[order.adapter], **self._own_tensors(order, memory)}

    def scored(self, order: Order, memory: Memory) -> Tree:
        """Return the adapter that the client is scored with: its personal one if it has one."""
        return dict(memory[PERSONAL]) if self.pull and PERSONAL in memory else self.start(order, memory)

    def finish(self, order: Order, memory: Memory, outcome: Outcome) -> tuple[Trees, Trees]:
        """Return (trees to send, trees to remember) after training; `delta` is after - before of the shared tensors."""
        rnd = order.round
        shared = {n: t for n, t in outcome.after.items() if self.leaves(n, rnd)}
        trained = {n for n in outcome.after if self.learns(n, rnd)}
        newly_private = {n: outcome.after[n] for n in outcome.after if n in trained and n not in shared}
        private = {**self._own_tensors(order, memory), **newly_private}
        sent, remembered = self.extra_trees(order, memory, _only(outcome, trained & shared.keys()))
        delta = sub(shared, {n: outcome.before[n] for n in shared})
        return {"delta": delta, **sent}, {**({"own": private} if private else {}), **remembered}

    def _own_tensors(self, order: Order, memory: Memory) -> Tree:
        """Return the client's own tensors, except those shared in this round: these come from the server."""
        private = memory.get("own", {})
        return {n: t for n, t in private.items() if not self.leaves(n, order.round)}


DEFAULT_RULE = ClientRule()


def _both(first: Selects, second: Selects) -> Selects:
    """Return a function that selects what both select; one of the two itself where that is enough."""
    if first is second or second in (share_all, train_all):
        return first
    if first in (share_all, train_all):
        return second
    return lambda name, rnd: first(name, rnd) and second(name, rnd)


def placed_like(tree: Mapping[str, Tensor]) -> Callable[[str, Tensor], Tensor]:
    """Return a function (name, like) -> `tree[name]` on the device and in the dtype of `like`; each is moved once."""
    moved: Tree = {}

    def placed(name: str, like: Tensor) -> Tensor:
        if name not in moved:
            moved[name] = tree[name].to(like)
        return moved[name]

    return placed


def _only(outcome: Outcome, names: set[str]) -> Outcome:
    def selected(tree: Tree) -> Tree:
        return {n: t for n, t in tree.items() if n in names}

    gradients = None if outcome.gradients is None else selected(outcome.gradients)
    return replace(
        outcome, before=selected(outcome.before), after=selected(outcome.after), gradients=gradients
    )
