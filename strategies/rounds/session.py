"""What the round loop knows of one run: its limits, who is connected, what is under way; how answers are awaited."""

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
from core.errors import PolicyRefused, RoundFailed
from core.sections import FaultConfig
from core.types import Client, Json, Metrics, Order, Scalar, ServerState, Update
from strategies.rounds.in_order import InOrder

log = logging.getLogger(__name__)

LOOK_S = 0.1  # between two looks at who is connected
PATIENT_S = 3.0  # without a word, while clients are missing
POLL_S = 0.02  # between two questions for replies, at least
SHARE = 0.02  # of the time waited so far: how long to wait before the next question
POLL_MOST_S = 1.0
# the SuperLink's own errors, at the deadline
EXPIRED = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
NEEDED = {"client", "examples", "census", "data", "skipped", "truth"}  # facts of a hello
AT_ONCE = 4  # replies asked for in one call, so that no more of them are in memory


@dataclass(frozen=True)
class Live:
    """What a run gives to the loop: its limits, what every order carries, and where its results go."""

    knobs: Mapping[str, Scalar]  # on every order: run, base fingerprint, ...
    min_available_nodes: int
    fraction_train: float
    sampling: str
    fault: FaultConfig
    eval_every: int
    spool: Path  # where an update waits whose turn has not come
    brief: Callable[[Mapping[str, float]], dict[str, Scalar]]  # a task's knobs from the pooled sums
    on_hello: Callable[[Mapping[int, Json]], None]  # client -> what it said of itself
    on_round: Callable[[ServerState, Json], None]  # commits the round
    say: Callable[[str], None] = log.info  # to who started the run
    base_scored: bool = False  # round 0 was committed by a run that is now resumed
    votes: bool = False  # whether several adapters can be asked together which answer is better

    def quorum(self, asked: int) -> int:
        """How many of the clients asked must answer."""
        wanted = max(self.fault.min_replies, math.ceil(self.fault.min_fraction * asked - 1e-9))
        return min(wanted, asked)


@dataclass
class Roster:
    """Who is connected: client (data partition) to node, and what each said of itself."""

    nodes: dict[int, int] = field(default_factory=dict)
    said: dict[int, Json] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)  # nodes whose own policy keeps them out of this run

    @property
    def names(self) -> dict[int, str]:
        """What clients that have a name are called."""
        return {c: str(said["name"]) for c, said in self.said.items() if said.get("name")}

    def clients(self) -> list[Client]:
        return [Client(c, int(self.said[c]["examples"])) for c in sorted(self.nodes)]

    def forget_all_but(self, present: Sequence[int]) -> list[int]:
        """Drop the clients whose node has left; the present nodes that nobody has asked yet."""
        self.nodes = {c: n for c, n in self.nodes.items() if n in present}
        return [n for n in present if n not in self.nodes.values() and n not in self.refused]

    def enter(self, replies: Sequence[Message], max_examples: int, failed: Collection[str]) -> list[str]:
        """Take the hellos in; why any of the nodes cannot take part. Who `failed` may come back as another node."""
        problems: set[str] = set()
        for reply in sorted(replies, key=lambda r: r.metadata.src_node_id):
            try:
                failure = wire.failure_of(reply)
                said: Json = None if failure else wire.decode_facts(reply.content)
            except Exception as error:  # as with every reply: not trusted, whatever is wrong with it
                problems.add(f"node {reply.metadata.src_node_id}: unreadable hello ({type(error).__name__})")
                continue
            if failure:
                if failure.kind == PolicyRefused.__name__:
                    self.refused.add(reply.metadata.src_node_id)
                problems.add(f"{failure.kind}: {failure.reason}")
                continue
            if bad := _unfit(said, max_examples):
                problems.add(f"node {reply.metadata.src_node_id} {bad}")
                continue
            client = said["client"]
            if client in self.nodes and str(client) not in failed:
                problems.add(f"two nodes say that they are partition-id {client}; each needs its own")
                continue
            self.nodes[client], self.said[client] = reply.metadata.src_node_id, said
        return sorted(problems)


def _unfit(said: Json, max_examples: int) -> str | None:
    """Why a hello cannot be used, or None."""
    if not isinstance(said, dict) or not said.keys() >= NEEDED:
        return "sends a hello without the facts that are needed"
    for name, most in (("client", 1 << 31), ("examples", max_examples)):
        if type(said[name]) is not int or not 0 <= said[name] <= most:
            return f"says {name} = {said[name]!r}; a whole number of 0..{most} is expected"
    counts = said["census"].values() if isinstance(said["census"], dict) else [None]
    if not all(isinstance(n, int | float) and math.isfinite(n) for n in counts):
        return f"says census = {said['census']!r}; names with numbers are expected"
    return None


@dataclass
class Exchange:
    """One question to many clients: what was sent, what it cost, and how long the answers took to use."""

    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0  # from the first message to the last reply
    using: float = 0.0  # of these and after them: seconds spent on checking and folding replies
    asked: dict[str, int] = field(default_factory=dict)  # message to node: Flower's own errors do not name it


@dataclass
class Session:
    """What the loop of one run remembers between its calls of Flower's methods."""

    live: Live
    state: ServerState
    roster: Roster = field(default_factory=Roster)
    orders: dict[int, Order] = field(default_factory=dict)  # by node, of the exchange under way
    exchange: Exchange = field(default_factory=Exchange)
    updates: list[Update] = field(default_factory=list)  # of the last exchange, by client, without trees
    failed: dict[str, str] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)

    def census(self) -> Metrics:
        """The federation's sums of what its clients counted in their rows."""
        out: Metrics = {}
        for _, said in sorted(self.roster.said.items()):
            for name, count in said["census"].items():
                out[name] = out.get(name, 0.0) + count
        return out

    def messages(self, kind: str, rnd: int, orders: Sequence[Order]) -> Iterator[Message]:
        """One message an order, made when it is sent; the tree that all orders carry is encoded once."""
        self.orders = {self.roster.nodes[o.client]: o for o in orders}
        seen: wire.Seen = {}
        ttl = self.live.fault.round_deadline_s  # Flower drops what is not fetched by then
        return (
            Message(
                wire.encode_order(order, seen), dst_node_id=n, message_type=kind, group_id=str(rnd), ttl=ttl
            )
            for n, order in self.orders.items()
        )

    def receive(
        self,
        replies: Iterable[Message],
        use: Callable[[Update], None],
        check: Callable[[Order, Update], str | None],
    ) -> None:
        """Sort replies into updates and failures as they come; `use` sees the good updates in order of client."""
        deadline_s = self.live.fault.round_deadline_s
        failed = {o.client: f"no answer within {deadline_s:g} s" for o in self.orders.values()}
        self.updates = []

        def take(update: Update) -> None:
            use(update)
            self.updates.append(replace(update, trees={}))

        line = InOrder(sorted(failed), take, self.live.spool)
        for reply in replies:
            node = self.exchange.asked[reply.metadata.reply_to_message_id]
            if reply.has_error() and reply.error.code in EXPIRED:
                continue  # it stays "no answer"
            order, started = self.orders[node], time.monotonic()
            outcome = _read(order, reply, check)
            if isinstance(outcome, Update):
                del failed[order.client]
                line.put(outcome)
            else:
                failed[order.client] = outcome
                line.skip(order.client)
            self.exchange.using += time.monotonic() - started
        for client in sorted(failed):
            line.skip(client)
        self.failed = {str(c): reason for c, reason in sorted(failed.items())}
        for client, reason in self.failed.items():
            log.info("client=%s failed: %s", client, reason)


def _read(order: Order, reply: Message, check: Callable[[Order, Update], str | None]) -> Update | str:
    """The update in a reply, or why there is none; what a client sends is not trusted, whatever is wrong with it."""
    try:
        if failure := wire.failure_of(reply):
            return f"{failure.kind}: {failure.reason}"
        update = wire.decode_update(reply.content)
        if update.client != order.client or update.adapter != order.adapter:
            return (
                f"it says client {update.client}, adapter {update.adapter!r}; "
                f"asked was client {order.client}, adapter {order.adapter!r}"
            )
        return check(order, update) or update
    except Exception as error:
        return f"unreadable reply ({type(error).__name__})"


def collect(
    grid: Grid, messages: Iterable[Message], timeout_s: float, asked: dict[str, int]
) -> Iterator[Message]:
    """Replies as they arrive, a few at a time, until all have come or `timeout_s` has passed since the sending.

    asked: takes the ids of the messages sent, and the node that each went to.
    """
    for message in messages:
        asked |= {i: message.metadata.dst_node_id for i in grid.push_messages([message]) if i}
    waiting, sent = list(asked), time.monotonic()
    while waiting:
        came, started = set[str](), time.monotonic()
        for some in (waiting[i : i + AT_ONCE] for i in range(0, len(waiting), AT_ONCE)):
            for reply in grid.pull_messages(some):
                if reply.metadata.reply_to_message_id in came:
                    continue  # a client that answers twice
                came.add(reply.metadata.reply_to_message_id)
                yield reply
        waiting = [i for i in waiting if i not in came]
        if waiting and time.monotonic() > sent + timeout_s:
            return
        if waiting:  # asking for many takes long: at most half of the time
            now = time.monotonic()
            time.sleep(max(POLL_S, min(POLL_MOST_S, SHARE * (now - sent)), now - started))


def present(grid: Grid, live: Live) -> list[int]:
    """The nodes, once at least min_available_nodes are connected; RoundFailed when that takes too long."""
    started, told = time.monotonic(), -1
    while len(nodes := sorted(grid.get_node_ids())) < live.min_available_nodes:
        waited = time.monotonic() - started
        if waited > PATIENT_S and len(nodes) != told:
            told = len(nodes)
            live.say(f"waiting  {told} of {live.min_available_nodes} clients are connected")
        if waited > live.fault.start_timeout_s:
            raise RoundFailed(
                f"{len(nodes)} clients connected within {live.fault.start_timeout_s:g} s, "
                f"strategy.min-available-nodes = {live.min_available_nodes}; start more SuperNodes or lower it"
            )
        time.sleep(LOOK_S)
    return nodes
