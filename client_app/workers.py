"""A site of several processes (tasks/forward/processes.py): the leader answers, the others repeat each step."""

import logging
from collections.abc import Callable

from client_app.site import Node, Site
from core.sections import Config
from core.types import Json, Order, Update
from tasks.forward import processes

log = logging.getLogger(__name__)

END = ("end", None, None)


class Led(Site):
    """A leader's site, behind the policy: the others hear only of what is done."""

    def hello(self, knobs: Json) -> Json:
        processes.broadcast(("hello", self.config, knobs))
        return super().hello(knobs)

    def train(self, order: Order) -> Update:
        processes.broadcast(("train", self.config, order))
        return super().train(order)

    def evaluate(self, order: Order) -> Update:
        processes.broadcast(("evaluate", self.config, order))
        return super().evaluate(order)


def site_of(config: Config, node: Node) -> Site:
    return Led(config, node) if processes.size() > 1 and processes.is_leader() else Site(config, node)


def follow(
    node: Node, make_room: Callable[[str, Config], None], site: Callable[[Config, Node], Site]
) -> None:
    """Do beside the leader what it does, until it ends; what fails here fails there as well, and is told there."""
    while (what := processes.broadcast())[0] != END[0]:
        kind, config, asked = what
        make_room(str(hash(config)), config)
        try:
            getattr(site(config, node), kind)(asked)
        except Exception as error:  # its text may quote a row
            log.error("rank=%d %s: %s", processes.rank(), kind, type(error).__name__)
