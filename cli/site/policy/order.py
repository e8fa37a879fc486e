"""What a site looks for in an order before it does anything with it: names, numbers, sizes."""

import math
import re
from collections.abc import Iterator, Mapping

import torch

from cli.site.policy.rules import Policy, shown
from core.errors import PolicyRefused
from core.factors import is_private
from core.sections import Config
from core.types import Order, Scalar
from strategies.clients.rule import FINISH

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
# By their type; "rows" and "steps-factor", which ask for everybody's rows, are not among them.
KNOBS: Mapping[str, type] = {
    "run": str, "base": str, "rnd": int, "clients": int, "cohort": int,
    "compare": str, "race": float, "vote": str, FINISH: int,
    "desirable-weight": float, "undesirable-weight": float, "z0": float,
}  # fmt: skip
HELLO = {"run", "base"}
IN_EVALUATION = {"compare", "race", "vote", FINISH}
MOST = 1 << 31


def admit_order(policy: Policy, config: Config, client: int, kind: str, order: Order) -> None:
    """Raises PolicyRefused for an order that this site, which is `client`, does not carry out. kind: hello, whose
    order has no trees, train or evaluate."""
    for faults in (_knobs(kind, order.knobs), _addressee(client, kind, order), _trees(policy, order)):
        if reason := next(faults, None):
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
    allowed = HELLO if kind == "hello" else KNOBS.keys() - (set() if kind == "evaluate" else IN_EVALUATION)
    for name, value in knobs.items():
        if name not in allowed:
            yield f"{kind} with {shown(name)}, which this site does not do"
        elif not _fits(value, KNOBS[name]):
            yield f"{name} = {shown(value)} in an order; a {KNOBS[name].__name__} is expected"
    if not NAME.fullmatch(str(knobs["run"])):
        yield f"run = {shown(knobs['run'])}: a run is named by letters, digits, '.', '_' and '-'"


def _fits(value: Scalar, want: type) -> bool:
    if want is float:
        return type(value) in (int, float) and abs(value) < MOST  # type: ignore[arg-type]  # NaN and Inf are not
    return type(value) is want and (want is str or abs(value) < MOST)  # type: ignore[arg-type]


def _addressee(client: int, kind: str, order: Order) -> Iterator[str]:
    if order.client != client:
        yield f"an order for client {shown(order.client)} has come to client {client}"
    if kind != "hello" and (not isinstance(order.adapter, str) or order.adapter not in order.trees):
        yield f"the order names adapter {shown(order.adapter)}, which is not in it"


def _trees(policy: Policy, order: Order) -> Iterator[str]:
    size = sum(t.numel() * t.element_size() for tree in order.trees.values() for t in tree.values())
    if size > policy.max_order_bytes:
        yield f"an order of {size} bytes; this site takes {policy.max_order_bytes}"
    for name, tree in order.trees.items():
        if not NAME.fullmatch(name):
            yield f"a tree named {shown(name)}: letters, digits, '.', '_' and '-' are expected"
        if private := [n for n in tree if is_private(n)]:
            yield f"{name} brings {shown(private[0])}, and a client's own parts come from nobody else"
        if not all(bool(torch.isfinite(t).all()) for t in tree.values()):
            yield f"{name} holds NaN or Inf"


def _work(policy: Policy, config: Config, kind: str, order: Order) -> Iterator[str]:
    knobs, train = order.knobs, config.train
    rnd, rounds = int(knobs["rnd"]), config.run.num_server_rounds
    first = 1 if kind == "train" else 0
    if not first <= rnd <= rounds:
        yield f"{kind} in round {rnd} of {first}..{rounds}"
    if type(order.recall) is not int or not 0 <= order.recall <= rnd - first:
        yield f"recall = {shown(order.recall)} in round {rnd}"
    if train.total_epochs and not train.local_epochs and kind == "train":
        cohort, clients = int(knobs.get("cohort", 0)), int(knobs.get("clients", 0))
        if not 0 < cohort <= clients:
            yield f"cohort = {cohort} of clients = {clients}"
        elif (epochs := train.total_epochs * clients / (rounds * cohort)) > policy.max_epochs:
            yield f"{epochs:g} passes over the rows in a round; this site allows {policy.max_epochs:g}"
    if not 0 <= int(knobs.get(FINISH, 0)) <= policy.max_steps:
        yield f"{FINISH} = {knobs[FINISH]}; this site allows {policy.max_steps}"
    yield from _beside(config, order)


def _beside(config: Config, order: Order) -> Iterator[str]:
    """Comparisons and votes are answered as the strategy and the task have them."""
    knobs = order.knobs
    if "compare" in knobs:
        if not config.build_strategy().client_rule().comparison_share:
            yield f"compare with strategy.name = {config.strategy_choice.name!r}, which compares nothing"
        if lost := [name for name in str(knobs["compare"]).split(",") if name not in order.trees]:
            yield f"compare names {shown(lost[0])}, which is not in the order"
    if "vote" in knobs:
        if config.task_choice.build().reads != "choices":
            yield f"vote with task.name = {config.task_choice.name!r}, which makes no choices"
        if bad := [word for word in str(knobs["vote"]).split(",") if not _ballot(word, order)]:
            yield f"vote holds {shown(bad[0])}; the name of an adapter in the order, ':' and a weight are expected"


def _ballot(word: str, order: Order) -> bool:
    name, _, weight = word.partition(":")
    try:
        return name in order.trees and math.isfinite(float(weight))
    except ValueError:
        return False
