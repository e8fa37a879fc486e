"""Answer one message at a client, by whichever way it came: parse, check, act, encode."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from client_app.claim import Claim
from client_app.node import Node
from client_app.site import Site
from client_app.workers import site_of
from core import wire
from core.caches import Holds, cached
from core.config import parse
from core.errors import AccordError, SiteError
from core.framing import Failure, RecordDict, encode_failure
from core.naming import shown_name
from core.sections import Config
from core.types import HelloRequest, Json, Order, Scalar, Update
from tasks.forward.setup import loads

log = logging.getLogger(__name__)

MAX_REASON = 2000  # characters of a message
KINDS = ("hello", "train", "evaluate")


class Responder(Protocol):
    """Answers orders: a Site, or a wrapper that enforces the site's policy."""

    def hello(self, request: HelloRequest) -> Json: ...

    def train(self, order: Order) -> Update: ...

    def evaluate(self, order: Order) -> Update: ...


Guard = Callable[[Site, Claim], Responder]  # wraps a site in its policy


@dataclass(frozen=True)
class Request:
    kind: str  # hello | train | evaluate
    keys: Mapping[str, Scalar]  # the run's configuration, flat
    record: RecordDict
    claim: Claim


def handle(
    request: Request,
    facts: Mapping[str, Scalar],
    guard: Guard = lambda site, claim: site,
    make_room: Callable[[str, Config], None] = lambda run, config: None,
) -> RecordDict:
    """Return the reply record; an AccordError becomes a one-line failure in it, other exceptions propagate.

    facts: the client's node config.
    guard: wraps the site in its policy.
    make_room: called with the run's id and configuration before anything is loaded.
    """
    try:
        config = _parsed(tuple(sorted(request.keys.items())))
        make_room(request.claim.run, config)
        return _answer(request, guard(site_for(config, Node.read(facts)), request.claim))
    except AccordError as error:
        # on one line each: the message may hold names that a server made up
        log.error("%s: %s", type(error).__name__, shown_name(str(error), MAX_REASON))
        # a site's own file may be named after a person
        reason = shown_name(error.outside() if facts.get("data-path") else str(error), MAX_REASON)
        return encode_failure(Failure(type(error).__name__, reason))


def _answer(request: Request, site: Responder) -> RecordDict:
    kind, before = request.kind, loads()
    if kind == "hello":
        hello = site.hello(wire.decode_hello_request(request.record))
        return wire.encode_facts({**hello, "loads": loads() - before})
    if kind not in KINDS:
        raise SiteError(f"a message must be one of {', '.join(KINDS)}, got {kind!r}")
    order = wire.decode_order(request.record)
    update = site.train(order) if kind == "train" else site.evaluate(order)
    return wire.encode_update(replace(update, loads=loads() - before))


@cached(Holds.RUN, maxsize=4)
def _parsed(flat: tuple[tuple[str, Scalar], ...]) -> Config:
    return parse(dict(flat))


@cached(Holds.RUN, maxsize=1)  # a site holds the tokens of one client of one run
def site_for(config: Config, node: Node) -> Site:
    return site_of(config, node)
