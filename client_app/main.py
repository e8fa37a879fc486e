"""The ClientApp: decode an order, hand it to the site, encode what comes back; failures travel as one line."""

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from core import wire
from core.config import Config, parse
from core.errors import AccordError

if TYPE_CHECKING:
    from client_app.site import Site

log = logging.getLogger(__name__)

app = ClientApp()


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    return _answer(
        message, context, lambda site: wire.encode_facts(site.hello(wire.decode_facts(message.content)))
    )


@app.train()
def train(message: Message, context: Context) -> Message:
    return _answer(
        message, context, lambda site: wire.encode_update(site.train(wire.decode_order(message.content)))
    )


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    return _answer(
        message, context, lambda site: wire.encode_update(site.evaluate(wire.decode_order(message.content)))
    )


def _answer(message: Message, context: Context, act: "Callable[[Site], RecordDict]") -> Message:
    """The reply; an AccordError becomes one line in it, anything else is Flower's to report."""
    from client_app.site import Node, Site  # seconds, which Ray's start need not wait for

    try:
        config = _parsed(tuple(sorted(context.run_config.items())))
        record = act(Site(config, Node.read(context.node_config)))
    except AccordError as error:
        log.error("%s: %s", type(error).__name__, error)
        record = wire.encode_failure(wire.Failure(type(error).__name__, str(error)))
    return Message(record, reply_to=message)


@lru_cache(maxsize=4)
def _parsed(flat: tuple[tuple[str, bool | int | float | str], ...]) -> Config:
    return parse(dict(flat))
