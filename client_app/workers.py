"""A site of several processes (tasks/forward/processes.py): the leader answers, the followers repeat each step."""

import logging
from collections.abc import Callable

from client_app.node import Node
from client_app.site import Site
from core.sections import Config
from core.types import HelloRequest, Json, Order, Update
from tasks.forward import processes

log = logging.getLogger(__name__)

END = ("end", None, None)


class LeaderSite(Site):
    """The leader's site, which broadcasts each request that passed the policy to the followers."""

    def hello(self, request: HelloRequest) -> Json:
        processes.broadcast(("hello", self.config, request))
        return super().hello(request)

    def train(self, order: Order) -> Update:
        processes.broadcast(("train", self.config, order))
        return super().train(order)

    def evaluate(self, order: Order) -> Update:
        processes.broadcast(("evaluate", self.config, order))
        return super().evaluate(order)


def site_of(config: Config, node: Node) -> Site:
    """Return the site to answer with: a LeaderSite in the leading process of several, else a plain Site."""
    return LeaderSite(config, node) if processes.size() > 1 and processes.is_leader() else Site(config, node)


def follow(
    node: Node, make_room: Callable[[str, Config], None], site: Callable[[Config, Node], Site]
) -> None:
    """Repeat the leader's requests until it ends. An error here occurs at the leader as well, which reports it."""
    while (request := processes.broadcast())[0] != END[0]:
        kind, config, argument = request
        make_room(str(hash(config)), config)
        try:
            getattr(site(config, node), kind)(argument)
        except Exception as error:  # its message may quote a row
            log.error("rank=%d %s: %s", processes.rank(), kind, type(error).__name__)
