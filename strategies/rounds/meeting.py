"""The beginning of a round: wait for nodes, ask new ones for a hello, and drop those that have disconnected."""

import logging
import time
from dataclasses import replace

from flwr.app import Message
from flwr.serverapp import Grid

from core import wire
from core.errors import ConfigError, RoundFailed
from core.types import HelloRequest
from strategies.rounds.session import RunContext, Session, collect

log = logging.getLogger(__name__)

CONNECT_POLL_S = 0.1  # between two looks at which nodes are connected
QUIET_S = 3.0  # wait this long for missing clients before reporting them


def meet(grid: Grid, s: Session, *, at_start: bool) -> None:
    """Ask new nodes for a hello (query.hello) and drop disconnected ones.

    at_start: wait until enough nodes are connected, and refuse the run if one of them cannot take part.
    """
    connected = wait_for_nodes(grid, s.context) if at_start else sorted(grid.get_node_ids())
    new_nodes = s.roster.forget_all_but(connected)
    request = HelloRequest(s.context.run, s.context.base, s.context.simulation)
    messages = [
        Message(wire.encode_hello_request(request), dst_node_id=n, message_type="query.hello")
        for n in new_nodes
    ]
    fault = s.context.fault
    timeout_s = fault.start_timeout_s if at_start else min(fault.start_timeout_s, fault.round_deadline_s)
    hellos = [m for m in collect(grid, messages, timeout_s, {}) if m.metadata.src_node_id in new_nodes]
    # Flower's own error replies, for a node that is gone, have another source and are not among the hellos
    silent = set(new_nodes) - {m.metadata.src_node_id for m in hellos}
    problems = s.roster.enter(hellos, fault.max_examples, s.failed)
    if at_start and len(hellos) > len(s.roster.nodes) + len(s.roster.refused):
        raise ConfigError(
            f"{len(problems)} of {len(new_nodes)} clients cannot take part: {'; '.join(problems)}"
        )
    problems += [f"node {n} sent no hello within {timeout_s:g} s" for n in sorted(silent)]
    for problem in problems:
        log.warning("client left out: %s", problem)
        if at_start:
            s.context.say(f"client left out: {problem}")
    if at_start and len(s.roster.nodes) < s.context.min_available_nodes:
        raise RoundFailed(
            f"{len(s.roster.nodes)} clients can take part, strategy.min-available-nodes = "
            f"{s.context.min_available_nodes} ({'; '.join(problems)})"
        )
    if len(s.roster.nodes) < fault.min_replies:
        raise RoundFailed(
            f"{len(s.roster.nodes)} clients are still connected, fault.min-replies = {fault.min_replies}"
        )
    current = {c: hello["examples"] for c, hello in sorted(s.roster.hellos.items())}
    s.state = replace(
        s.state,
        clients=max(s.state.clients, len(s.roster.hellos)),
        examples={**s.state.examples, **current},
    )


def wait_for_nodes(grid: Grid, context: RunContext) -> list[int]:
    """Wait until at least min_available_nodes are connected and return the connected nodes.

    Raises RoundFailed after fault.start-timeout-s.
    """
    started, reported = time.monotonic(), -1
    while len(nodes := sorted(grid.get_node_ids())) < context.min_available_nodes:
        waited = time.monotonic() - started
        if waited > QUIET_S and len(nodes) != reported:
            reported = len(nodes)
            context.say(f"waiting  {reported} of {context.min_available_nodes} clients are connected")
        if waited > context.fault.start_timeout_s:
            raise RoundFailed(
                f"{len(nodes)} clients connected within {context.fault.start_timeout_s:g} s, "
                f"strategy.min-available-nodes = {context.min_available_nodes}; start more SuperNodes or lower it"
            )
        time.sleep(CONNECT_POLL_S)
    return nodes
