"""Checks of an order before a site acts on it: names, numbers, sizes."""

import math
import re
from collections.abc import Iterator, Mapping

import torch

from cli.site.policy.rules import Policy, quote
from core.errors import PolicyRefused
from core.factors import is_private
from core.sections import Config
from core.types import Order, Scalar
from strategies.clients.rule import FINISH

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
# The knobs that an order may have, with their types; not "rows" and "steps-factor", which ask for all clients' rows.
KNOBS: Mapping[str, type] = {
    "run": str, "base": str, "rnd": int, "clients": int, "cohort": int,
    "compare": str, "race": float, "vote": str, FINISH: int,
    "desirable-weight": float, "undesirable-weight": float, "z0": float,
}  # fmt: skip
HELLO = {"run", "base"}
EVALUATION_ONLY = {"compare", "race", "vote", FINISH}
MAX_NUMBER = 1 << 31


def admit_order(policy: Policy, config: Config, client: int, kind: str, order: Order) -> None:
    """Raise PolicyRefused for an order that this site, which is `client`, must not carry out.

    kind: "hello" (its order has no trees), "train" or "evaluate".
    """
    for problems in (_knobs(kind, order.knobs), _addressee(client, kind, order), _trees(policy, order)):
        if reason := next(problems, None):
            raise PolicyRefused(reason)
    if kind != "hello" and (reason := next(_work(policy, config, kind, order), None)):
        raise PolicyRefused(reason)


def _knobs(kind: str, knobs: Mapping[str, Scalar]) -> Iterator[str]:
    if not isinstance(knobs, Mapping):
        yield "an order without knobs"
        return
    needs = HELLO if kind == "hello" else HELLO | {"rnd"}
    if missing := sorted(needs - knobs.keys()):
        yield f"{kind} without {missing[0]!r}"
    allowed = HELLO if kind == "hello" else KNOBS.keys() - (set() if kind == "evaluate" else EVALUATION_ONLY)
    for name, value in knobs.items():
        if name not in allowed:
            yield f"{kind} with knob {quote(name)}, which this site does not allow"
        elif not _has_type(value, KNOBS[name]):
            yield f"knob {name} = {quote(value)} in an order; expected a {KNOBS[name].__name__}"
    if not NAME.fullmatch(str(knobs["run"])):
        yield f"run = {quote(knobs['run'])}: it must consist of letters, digits, '.', '_' and '-'"


def _has_type(value: Scalar, want: type) -> bool:
    """Whether the value has the type and, if it is a number, is finite and of usable size."""
    if want is float:
        return type(value) in (int, float) and abs(value) < MAX_NUMBER  # type: ignore[arg-type]  # False for NaN and Inf
    return type(value) is want and (want is str or abs(value) < MAX_NUMBER)  # type: ignore[arg-type]


def _addressee(client: int, kind: str, order: Order) -> Iterator[str]:
    if order.client != client:
        yield f"an order for client {quote(order.client)} was sent to client {client}"
    if kind != "hello" and (not isinstance(order.adapter, str) or order.adapter not in order.trees):
        yield f"the order names adapter {quote(order.adapter)}, which is not in it"


def _trees(policy: Policy, order: Order) -> Iterator[str]:
    size = sum(t.numel() * t.element_size() for tree in order.trees.values() for t in tree.values())
    if size > policy.max_order_bytes:
        yield f"an order of {size} bytes; this site allows max-order-bytes = {policy.max_order_bytes}"
    for name, tree in order.trees.items():
        if not NAME.fullmatch(name):
            yield f"a tree named {quote(name)}: a name must consist of letters, digits, '.', '_' and '-'"
        if private := [n for n in tree if is_private(n)]:
            yield f"{name} contains {quote(private[0])}, but private tensors must not come from the server"
        if not all(bool(torch.isfinite(t).all()) for t in tree.values()):
            yield f"{name} holds NaN or Inf"


def _work(policy: Policy, config: Config, kind: str, order: Order) -> Iterator[str]:
    knobs, train = order.knobs, config.train
    rnd, rounds = int(knobs["rnd"]), config.run.num_server_rounds
    first = 1 if kind == "train" else 0
    if not first <= rnd <= rounds:
        yield f"{kind} in round {rnd}; expected {first} to {rounds}"
    if type(order.recall) is not int or not 0 <= order.recall <= rnd - first:
        yield f"recall = {quote(order.recall)} in round {rnd}; expected 0 to {rnd - first}"
    if train.total_epochs and not train.local_epochs and kind == "train":
        cohort, clients = int(knobs.get("cohort", 0)), int(knobs.get("clients", 0))
        if not 0 < cohort <= clients:
            yield f"cohort = {cohort} and clients = {clients}; expected 1 to clients"
        elif (epochs := train.total_epochs * clients / (rounds * cohort)) > policy.max_epochs:
            yield f"{epochs:g} passes over the rows in a round; this site allows max-epochs = {policy.max_epochs:g}"
    if not 0 <= int(knobs.get(FINISH, 0)) <= policy.max_steps:
        yield f"{FINISH} = {knobs[FINISH]}; this site allows max-steps = {policy.max_steps}"
    yield from _comparisons(config, order)


def _comparisons(config: Config, order: Order) -> Iterator[str]:
    """Problems of comparisons and votes: only some strategies compare adapters, only some tasks can vote."""
    knobs = order.knobs
    if "compare" in knobs:
        if not config.build_strategy().client_rule().comparison_share:
            yield f"compare with strategy.name = {config.strategy_choice.name!r}, which compares nothing"
        if missing := [name for name in str(knobs["compare"]).split(",") if name not in order.trees]:
            yield f"compare names {quote(missing[0])}, which is not in the order"
    if "vote" in knobs:
        if config.task_choice.build().reads != "choices":
            yield f"vote with task.name = {config.task_choice.name!r}, which makes no choices"
        if bad := [ballot for ballot in str(knobs["vote"]).split(",") if not _is_ballot(ballot, order)]:
            yield f"vote holds {quote(bad[0])}; expected NAME:WEIGHT with an adapter of the order"


def _is_ballot(text: str, order: Order) -> bool:
    name, _, weight = text.partition(":")
    try:
        return name in order.trees and math.isfinite(float(weight))
    except ValueError:
        return False
