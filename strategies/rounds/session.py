"""The round loop's view of a run: limits, connected clients, the exchange in progress; and waiting for replies."""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from core import wire
from core.errors import PolicyRefused
from core.sections import FaultConfig
from core.types import Client, Json, Metrics, Order, OrderOption, Scalar, ServerState, Update
from strategies.rounds.in_order import InOrder
from strategies.rounds.metrics import is_number

log = logging.getLogger(__name__)

MIN_POLL_S = 0.02  # between two requests for replies
POLL_SHARE = 0.02  # wait this share of the time waited so far before the next request
MAX_POLL_S = 1.0
# errors that the SuperLink itself reports at the deadline
EXPIRED = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
REQUIRED_FACTS = {"client", "examples", "row_counts", "data", "skipped", "truth"}  # of a hello
REPLIES_PER_CALL = 4  # bounds how many replies are in memory
Check = Callable[[Order, Update], Update | str]  # the update to use, or why it cannot be used


@dataclass(frozen=True)
class RunContext:
    """What a run gives to the round loop: limits, what every order carries, and callbacks for results."""

    run: str  # name of the run folder
    base: str  # fingerprint of the base model
    simulation: bool  # whether all clients are processes of this machine
    min_available_nodes: int
    fraction_train: float
    sampling: str
    fault: FaultConfig
    eval_every: int
    spool: Path  # folder for updates that wait on disk
    task_order_options: Mapping[str, OrderOption]  # that the task declares
    task_options: Callable[
        [Mapping[str, float]], dict[str, Scalar]
    ]  # options of orders, from the pooled counts
    on_hello: Callable[[Mapping[int, Json]], None]  # receives the clients' hellos by client
    on_round: Callable[[ServerState, Json], None]  # commits the round: state and record
    say: Callable[[str], None] = log.info  # prints a line for the user
    base_scored: bool = False  # whether round 0 was committed before this run was resumed
    votes: bool = False  # whether several adapters can vote on which answer is better

    def quorum(self, orders: int) -> int:
        """Return how many of so many orders must be answered."""
        # min_fraction x orders may exceed a whole number by a rounding error, which must not raise the quorum
        required = max(self.fault.min_replies, math.ceil(self.fault.min_fraction * orders - 1e-9))
        return min(required, orders)


@dataclass
class Roster:
    """The connected clients: the node of each client (data partition), and its hello."""

    nodes: dict[int, int] = field(default_factory=dict)
    hellos: dict[int, Json] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)  # nodes whose site's policy refuses this run

    @property
    def names(self) -> dict[int, str]:
        """The names of clients that have one."""
        return {c: str(hello["name"]) for c, hello in self.hellos.items() if hello.get("name")}

    def clients(self) -> list[Client]:
        return [Client(c, int(self.hellos[c]["examples"])) for c in sorted(self.nodes)]

    def forget_all_but(self, present: Sequence[int]) -> list[int]:
        """Drop clients whose node has disconnected. Returns the present nodes that have not been asked for a hello."""
        self.nodes = {c: n for c, n in self.nodes.items() if n in present}
        return [n for n in present if n not in self.nodes.values() and n not in self.refused]

    def enter(self, replies: Sequence[Message], max_examples: int, failed: Collection[str]) -> list[str]:
        """Enter the clients of these hellos. Returns why nodes cannot take part.

        failed: clients without a result in the last exchange; such a client may return as another node.
        """
        problems: set[str] = set()
        for reply in sorted(replies, key=lambda r: r.metadata.src_node_id):
            try:
                failure = wire.failure_of(reply)
                hello: Json = None if failure else wire.decode_facts(reply.content)
            except Exception as error:  # replies are not trusted: any malformed one is only reported
                problems.add(f"node {reply.metadata.src_node_id}: unreadable hello ({type(error).__name__})")
                continue
            if failure:
                if failure.kind == PolicyRefused.__name__:
                    self.refused.add(reply.metadata.src_node_id)
                problems.add(f"{failure.kind}: {failure.reason}")
                continue
            if bad := _hello_problem(hello, max_examples):
                problems.add(f"node {reply.metadata.src_node_id} {bad}")
                continue
            client = hello["client"]
            if client in self.nodes and str(client) not in failed:
                problems.add(f"two nodes have partition-id {client}; each needs a different one")
                continue
            self.nodes[client], self.hellos[client] = reply.metadata.src_node_id, hello
        return sorted(problems)


def _hello_problem(hello: Json, max_examples: int) -> str | None:
    """Return why a hello cannot be used, or None."""
    if not isinstance(hello, dict) or not hello.keys() >= REQUIRED_FACTS:
        return f"sent a hello without all of the facts {', '.join(sorted(REQUIRED_FACTS))}"
    for name, limit in (("client", 1 << 31), ("examples", max_examples)):
        if type(hello[name]) is not int or not 0 <= hello[name] <= limit:
            return f"sent {name} = {hello[name]!r}; expected an integer from 0 to {limit}"
    counts = hello["row_counts"].values() if isinstance(hello["row_counts"], dict) else [None]
    if not all(is_number(n) for n in counts):
        return f"sent row_counts = {str(hello['row_counts'])[:80]}; expected finite numbers by name"
    return None


@dataclass
class Exchange:
    """Traffic and timing of one exchange: orders to many clients, and their replies."""

    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0  # from the first message to the last reply
    aggregate_seconds: float = 0.0  # checking, folding and merging replies; partly within `seconds`
    # message id to node, because Flower's own errors do not name the node
    node_of: dict[str, int] = field(default_factory=dict)


@dataclass
class Session:
    """What the loop of one run remembers between its calls of Flower's methods."""

    context: RunContext
    state: ServerState
    roster: Roster = field(default_factory=Roster)
    orders: dict[int, Order] = field(default_factory=dict)  # by node, of the current exchange
    exchange: Exchange = field(default_factory=Exchange)
    updates: list[Update] = field(default_factory=list)  # of the last exchange, by client, without trees
    failed: dict[str, str] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)

    def pooled_row_counts(self) -> Metrics:
        """Return the sums over all clients of what each counted in its rows."""
        out: Metrics = {}
        for _, hello in sorted(self.roster.hellos.items()):
            for name, count in hello["row_counts"].items():
                out[name] = out.get(name, 0.0) + count
        return out

    def messages(self, kind: str, rnd: int, orders: Sequence[Order]) -> Iterator[Message]:
        """Yield a message per order, each built when it is sent; a tree that all orders carry is encoded once."""
        self.orders = {self.roster.nodes[o.client]: o for o in orders}
        encoded: wire.EncodedTrees = {}
        ttl = self.context.fault.round_deadline_s  # Flower drops what is not fetched by then
        return (
            Message(
                wire.encode_order(order, encoded),
                dst_node_id=n,
                message_type=kind,
                group_id=str(rnd),
                ttl=ttl,
            )
            for n, order in self.orders.items()
        )

    def receive(
        self,
        replies: Iterable[Message],
        use: Callable[[Update], None],
        check: Check,
    ) -> None:
        """Sort replies into updates and failures as they come.

        use(update): called with the usable updates in order of client, whatever order they arrive in.
        """
        deadline_s = self.context.fault.round_deadline_s
        failed = {o.client: f"no answer within {deadline_s:g} s" for o in self.orders.values()}
        self.updates = []

        def take(update: Update) -> None:
            use(update)
            self.updates.append(replace(update, trees={}))

        queue = InOrder(sorted(failed), take, self.context.spool)
        for reply in replies:
            node = self.exchange.node_of[reply.metadata.reply_to_message_id]
            if reply.has_error() and reply.error.code in EXPIRED:
                continue  # the reason stays "no answer within ..."
            order, started = self.orders[node], time.monotonic()
            outcome = _read(order, reply, check)
            if isinstance(outcome, Update):
                del failed[order.client]
                queue.put(outcome)
            else:
                failed[order.client] = outcome
                queue.skip(order.client)
            self.exchange.aggregate_seconds += time.monotonic() - started
        for client in sorted(failed):
            queue.skip(client)
        self.failed = {str(c): reason for c, reason in sorted(failed.items())}
        for client, reason in self.failed.items():
            log.info("client=%s failed: %s", client, reason)


def _read(order: Order, reply: Message, check: Check) -> Update | str:
    """Return the update in a reply, or why it has none. Replies are not trusted: a malformed one is only reported."""
    try:
        if failure := wire.failure_of(reply):
            return f"{failure.kind}: {failure.reason}"
        update = wire.decode_update(reply.content)
        if update.client != order.client or update.adapter != order.adapter:
            return (
                f"the reply names client {update.client}, adapter {update.adapter!r}; "
                f"the order was for client {order.client}, adapter {order.adapter!r}"
            )
        return check(order, update)
    except Exception as error:
        return f"unreadable reply ({type(error).__name__})"


def collect(
    grid: Grid, messages: Iterable[Message], timeout_s: float, node_of: dict[str, int]
) -> Iterator[Message]:
    """Send the messages and yield replies as they arrive, until all are in or `timeout_s` has passed.

    timeout_s counts from the last message sent. node_of: receives the ids of the sent messages, with the node of each.
    """
    for message in messages:
        node_of |= {i: message.metadata.dst_node_id for i in grid.push_messages([message]) if i}
    waiting, sent = list(node_of), time.monotonic()
    while waiting:
        arrived, started = set[str](), time.monotonic()
        for batch in (waiting[i : i + REPLIES_PER_CALL] for i in range(0, len(waiting), REPLIES_PER_CALL)):
            for reply in grid.pull_messages(batch):
                if reply.metadata.reply_to_message_id in arrived:
                    continue  # a client that answered twice
                arrived.add(reply.metadata.reply_to_message_id)
                yield reply
        waiting = [i for i in waiting if i not in arrived]
        if waiting and time.monotonic() > sent + timeout_s:
            return
        if waiting:  # requests for many messages take long: spend at most half of the time on them
            now = time.monotonic()
            time.sleep(max(MIN_POLL_S, min(MAX_POLL_S, POLL_SHARE * (now - sent)), now - started))
