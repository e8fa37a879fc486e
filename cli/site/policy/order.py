"""Checks of an order before a site acts on it: names, numbers, sizes."""

import math
import re
from collections.abc import Iterator, Mapping

import torch

from cli.site.policy.rules import Policy, quote
from client_app.declarations import declared_options
from core.errors import PolicyRefused
from core.factors import is_private
from core.sections import Config
from core.types import HelloRequest, Order, OrderOption, Scalar
from strategies.clients.rule import FINISH

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
MAX_NUMBER = 1 << 31
MAX_TREES = 64  # adapters of an order to compare, and what an algorithm adds


def admit_hello(request: HelloRequest) -> None:
    """Raise PolicyRefused for a hello request that this site must not answer."""
    if reason := next(_origin(request), None):
        raise PolicyRefused(reason)


def admit_order(policy: Policy, config: Config, client: int, kind: str, order: Order) -> None:
    """Raise PolicyRefused for an order that this site, which is `client`, must not carry out.

    kind: "train" or "evaluate".
    """
    options = _options(kind, order.options, declared_options(config))
    problems = (
        _origin(order), _numbers(order), options, _addressee(client, order), _trees(policy, order),
        _work(policy, config, kind, order),
    )  # fmt: skip
    for reasons in problems:
        if reason := next(reasons, None):
            raise PolicyRefused(reason)


def _origin(message: Order | HelloRequest) -> Iterator[str]:
    if not NAME.fullmatch(message.run):
        yield f"run = {quote(message.run)}: it must consist of letters, digits, '.', '_' and '-'"


def _numbers(order: Order) -> Iterator[str]:
    for name in ("round", "recall", "clients", "cohort"):
        if not _has_type(getattr(order, name), int):
            yield f"{name} = {quote(getattr(order, name))} in an order; expected an int"


def _options(kind: str, options: Mapping[str, Scalar], declared: Mapping[str, OrderOption]) -> Iterator[str]:
    """Problems of the options: the run's task and strategy must declare them, for this site's rows alone."""
    for name, value in options.items():
        option = declared.get(name)
        if option is None or kind not in option.kinds or not option.own_rows:
            yield f"{kind} with the option {quote(name)}, which this site does not allow"
        elif not _has_type(value, option.type):
            yield f"option {name} = {quote(value)} in an order; expected a {option.type.__name__}"


def _has_type(value: Scalar, want: type) -> bool:
    """Whether the value has the type and, if it is a number, is finite and of usable size."""
    if want is float:
        return type(value) in (int, float) and abs(value) < MAX_NUMBER  # type: ignore[arg-type]  # False for NaN and Inf
    return type(value) is want and (want is str or abs(value) < MAX_NUMBER)  # type: ignore[arg-type]


def _addressee(client: int, order: Order) -> Iterator[str]:
    if order.client != client:
        yield f"an order for client {quote(order.client)} was sent to client {client}"
    if order.adapter not in order.trees:
        yield f"the order names adapter {quote(order.adapter)}, which is not in it"


def _trees(policy: Policy, order: Order) -> Iterator[str]:
    size = sum(t.numel() * t.element_size() for tree in order.trees.values() for t in tree.values())
    if len(order.trees) > MAX_TREES:
        yield f"an order of {len(order.trees)} trees; this site allows {MAX_TREES}"
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
    train, rnd, rounds = config.train, order.round, config.run.num_server_rounds
    first = 1 if kind == "train" else 0
    if not first <= rnd <= rounds:
        yield f"{kind} in round {rnd}; expected {first} to {rounds}"
    if not 0 <= order.recall <= rnd - first:
        yield f"recall = {quote(order.recall)} in round {rnd}; expected 0 to {rnd - first}"
    if train.total_epochs and not train.local_epochs and kind == "train":
        cohort, clients = order.cohort, order.clients
        if not 0 < cohort <= clients:
            yield f"cohort = {cohort} and clients = {clients}; expected 1 to clients"
        elif (epochs := train.total_epochs * clients / (rounds * cohort)) > policy.max_epochs:
            yield f"{epochs:g} passes over the rows in a round; this site allows max-epochs = {policy.max_epochs:g}"
    if not 0 <= int(order.options.get(FINISH, 0)) <= policy.max_steps:
        yield f"{FINISH} = {order.options[FINISH]}; this site allows max-steps = {policy.max_steps}"
    yield from _comparisons(config, kind, order)


def _comparisons(config: Config, kind: str, order: Order) -> Iterator[str]:
    """Problems of comparisons and votes: only some strategies compare adapters, only some tasks can vote."""
    if order.compare:
        if kind != "evaluate":
            yield f"{kind} with compare, which this site does not allow"
        if not config.build_strategy().local_rule().comparison_share:
            yield f"compare with strategy.name = {config.strategy_choice.name!r}, which compares nothing"
        if len(set(order.compare)) < len(order.compare):
            yield "compare names an adapter twice"
        if missing := [name for name in order.compare if name not in order.trees]:
            yield f"compare names {quote(missing[0])}, which is not in the order"
    if "vote" in order.options:
        if config.task_choice.build().reads != "choices":
            yield f"vote with task.name = {config.task_choice.name!r}, which makes no choices"
        if bad := [
            ballot for ballot in str(order.options["vote"]).split(",") if not _is_ballot(ballot, order)
        ]:
            yield f"vote holds {quote(bad[0])}; expected NAME:WEIGHT with an adapter of the order"


def _is_ballot(text: str, order: Order) -> bool:
    name, _, weight = text.partition(":")
    try:
        return name in order.trees and math.isfinite(float(weight))
    except ValueError:
        return False
