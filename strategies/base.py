"""Strategy: pure hooks that an algorithm overrides, and the round loop that calls them."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from core import wire
from core.errors import ConfigError, RoundFailed, TreeMismatch
from core.seeds import rng_for
from core.tree import Tree, is_finite, same_layout
from core.types import Client, Json, Metrics, Order, Scalar, ServerState, Update
from strategies.kit.client_rule import ClientRule
from strategies.kit.metrics import SUM, pooled_sums, weighted_mean

log = logging.getLogger(__name__)

POLL_S = 0.1


@dataclass(frozen=True)
class Live:
    """What a run gives to the loop: its limits, what every order carries, and where its results go."""

    knobs: Mapping[str, Scalar]  # on every order: run, base fingerprint, ...
    min_available_nodes: int
    fraction_train: float
    round_deadline_s: float
    min_replies: int
    start_timeout_s: float
    eval_every: int
    brief: Callable[[Mapping[str, float]], dict[str, Scalar]]  # a task's knobs from the pooled sums
    on_hello: Callable[[Mapping[int, Json]], None]  # client -> what it said of itself
    on_round: Callable[[ServerState, Json], None]  # commits the round


@dataclass
class Roster:
    """Who is connected: client (data partition) to node, and what each said of itself."""

    nodes: dict[int, int] = field(default_factory=dict)
    said: dict[int, Json] = field(default_factory=dict)

    def clients(self) -> list[Client]:
        return [Client(c, int(self.said[c]["examples"])) for c in sorted(self.nodes)]

    def forget_all_but(self, present: Sequence[int]) -> list[int]:
        """Drop the clients whose node has left; the present nodes that nobody knows yet."""
        self.nodes = {c: n for c, n in self.nodes.items() if n in present}
        return [n for n in present if n not in self.nodes.values()]

    def enter(self, asked: Sequence[int], replies: Sequence[Message]) -> list[str]:
        """Take the hellos in; why any of the asked nodes cannot take part."""
        problems = {
            f"node {n} did not answer" for n in set(asked) - {r.metadata.src_node_id for r in replies}
        }
        for reply in sorted(replies, key=lambda r: r.metadata.src_node_id):
            if failure := wire.failure_of(reply):
                problems.add(f"{failure.kind}: {failure.reason}")
                continue
            said = wire.decode_facts(reply.content)
            client = int(said["client"])
            if client in self.nodes:
                problems.add(f"two nodes say that they are partition-id {client}; each needs its own")
                continue
            self.nodes[client], self.said[client] = reply.metadata.src_node_id, said
        return sorted(problems)


@dataclass
class Replies:
    """What came back in one exchange: messages, bytes of payload both ways, seconds."""

    messages: list[Message]
    bytes_down: int
    bytes_up: int
    seconds: float


@dataclass
class Session:
    """What the loop of one run remembers between its calls of Flower's methods."""

    live: Live
    state: ServerState
    roster: Roster = field(default_factory=Roster)
    orders: dict[int, Order] = field(default_factory=dict)  # by node, of the exchange under way
    updates: list[Update] = field(default_factory=list)  # of the last exchange, by client
    failed: dict[str, str] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)

    def census(self) -> Metrics:
        """The federation's sums of what its clients counted in their rows."""
        out: Metrics = {}
        for _, said in sorted(self.roster.said.items()):
            for name, count in said["census"].items():
                out[name] = out.get(name, 0.0) + count
        return out

    def messages(self, kind: str, rnd: int, orders: Sequence[Order]) -> list[Message]:
        self.orders = {self.roster.nodes[o.client]: o for o in orders}
        return [
            Message(wire.encode_order(o), dst_node_id=n, message_type=kind, group_id=str(rnd))
            for n, o in self.orders.items()
        ]

    def receive(
        self, replies: Iterable[Message], *, check: Callable[[Order, Update], str | None] | None
    ) -> None:
        """Sort replies into updates and failures."""
        self.updates, failed = (
            [],
            dict.fromkeys(self.orders, f"no answer within {self.live.round_deadline_s:g} s"),
        )
        for reply in replies:
            node = reply.metadata.src_node_id
            if failure := wire.failure_of(reply):
                failed[node] = f"{failure.kind}: {failure.reason}"
                continue
            try:
                update = wire.decode_update(reply.content)
            except (KeyError, TypeError, ValueError, TreeMismatch) as error:
                failed[node] = f"unreadable reply ({type(error).__name__})"
                continue
            if check and (reason := check(self.orders[node], update)):
                failed[node] = reason
                continue
            del failed[node]
            self.updates.append(update)
        # floating-point addition must not depend on who answered first
        self.updates.sort(key=lambda u: u.client)
        self.failed = {str(o.client): failed[n] for n, o in sorted(self.orders.items()) if n in failed}
        for client, reason in self.failed.items():
            log.info("client=%s failed: %s", client, reason)


class Strategy(FlowerStrategy):
    """A federated algorithm as pure functions on a state value.

    A subclass overrides hooks only; a hook reads its arguments and the hyper-parameter fields, changes
    neither, and stores nothing on self. It never sees a message, a clock or a disk.
    """

    _session: Session  # of the run under way; the hooks never read it

    # --- hooks ---------------------------------------------------------------

    def init(self, adapters: dict[str, Tree], seed: int) -> ServerState:
        return ServerState(seed=seed, round=0, adapters=adapters)

    def plan_train(self, state: ServerState, rnd: int, cohort: list[Client]) -> list[Order]:
        """Whom to ask to train what. Default: everyone in the cohort, the global adapter."""
        return [Order(c.id, {"global": state.adapters["global"]}) for c in cohort]

    def merge_train(self, state: ServerState, rnd: int, updates: list[Update]) -> tuple[ServerState, Metrics]:
        """The next state from the replies, which come sorted by client."""
        raise NotImplementedError

    def plan_evaluate(self, state: ServerState, rnd: int, everyone: list[Client]) -> list[Order]:
        """Whom to ask to score what on its held-out rows. Default: everyone, the global adapter."""
        return [Order(c.id, {"global": state.adapters["global"]}) for c in everyone]

    def merge_evaluate(
        self, state: ServerState, rnd: int, updates: list[Update]
    ) -> tuple[ServerState, Metrics]:
        return state, weighted_mean(updates)

    def client_rule(self) -> ClientRule:
        return ClientRule()

    # --- the loop ------------------------------------------------------------

    def run(self, grid: Grid, live: Live, state: ServerState, rounds: int) -> ServerState:
        """Rounds state.round + 1 .. rounds. A fresh and a resumed run are the same call.

        Raises ConfigError when a client cannot take part, RoundFailed when too few answer; what
        `live.on_round` committed before stays.
        """
        s = self._session = Session(live, state)
        self._meet(grid, s, at_start=True)
        live.on_hello(s.roster.said)
        if state.round == 0:
            live.on_round(s.state, self._evaluate(grid, s, 0, {"round": 0, "participants": [], "failed": {}}))
        for rnd in range(state.round + 1, rounds + 1):
            started = time.monotonic()
            self._meet(grid, s, at_start=False)
            record = self._train(grid, s, rnd)
            if rnd == rounds or (live.eval_every and rnd % live.eval_every == 0):
                self._evaluate(grid, s, rnd, record)
            record["seconds"]["total"] = time.monotonic() - started
            live.on_round(s.state, record)
        return s.state

    def _train(self, grid: Grid, s: Session, rnd: int) -> Json:
        replies = self._exchange(grid, s, self.configure_train(rnd, ArrayRecord(), ConfigRecord(), grid))
        merging = time.monotonic()
        self.aggregate_train(rnd, replies.messages)
        kept = s.updates
        return {
            "round": rnd,
            "participants": [u.client for u in kept],
            "failed": dict(s.failed),
            "train": {"mean": s.metrics, "clients": _by_client(kept)},
            "bytes_down": replies.bytes_down,
            "bytes_up": replies.bytes_up,
            "seconds": {**_split(kept, replies.seconds), "aggregate": time.monotonic() - merging},
        }

    def _evaluate(self, grid: Grid, s: Session, rnd: int, record: Json) -> Json:
        replies = self._exchange(grid, s, self.configure_evaluate(rnd, ArrayRecord(), ConfigRecord(), grid))
        self.aggregate_evaluate(rnd, replies.messages)
        record["failed"] |= {c: f"evaluation: {reason}" for c, reason in s.failed.items()}
        if s.updates:
            record["eval"] = {"mean": s.metrics, "clients": _by_client(s.updates)}
        record["bytes_down"] = record.get("bytes_down", 0) + replies.bytes_down
        record["bytes_up"] = record.get("bytes_up", 0) + replies.bytes_up
        record.setdefault("seconds", {})["evaluate"] = replies.seconds
        return record

    def _check_update(self, order: Order, update: Update) -> str | None:
        """Why an update cannot be merged, or None. What a client says is not trusted."""
        if update.client != order.client or update.examples <= 0:
            return f"it says client {update.client}, {update.examples} examples"
        if bad := [name for name, tree in update.trees.items() if not is_finite(tree)]:
            return f"{bad[0]} holds NaN or Inf"
        shares, rnd = self.client_rule().shares, int(order.knobs["rnd"])
        expected = {n: t for n, t in order.trees[order.adapter].items() if shares(n, rnd)}
        try:
            same_layout(expected, update.trees.get("delta", {}), where="delta")
        except TreeMismatch as error:
            return str(error)
        return None

    def _stamp(self, s: Session, rnd: int, orders: list[Order]) -> list[Order]:
        """What every order carries besides the algorithm's own: round, run, the task's brief, the memory to recall."""
        brief = s.live.brief({**s.census(), **s.state.facts.get("pool", {})})
        recall = s.state.facts.get("recall", {})
        common = {**s.live.knobs, **brief}
        return [
            replace(o, recall=int(recall.get(str(o.client), 0)), knobs={**common, **o.knobs, "rnd": rnd})
            for o in orders
        ]

    # --- Flower's methods: encode what a hook plans, decode what it merges ------
    # The adapters are in the session's state, so Flower's `arrays` and `config` stay empty.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        s = self._session
        cohort = sample(s.roster.clients(), s.live.fraction_train, s.state.seed, server_round)
        return s.messages(
            "train",
            server_round,
            self._stamp(s, server_round, self.plan_train(s.state, server_round, cohort)),
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        s = self._session
        s.receive(replies, check=self._check_update)
        if len(s.updates) < min(s.live.min_replies, len(s.orders)):
            reasons = "; ".join(f"client {c}: {reason}" for c, reason in s.failed.items())
            raise RoundFailed(
                f"round {server_round}: {len(s.updates)} of {len(s.orders)} clients answered, "
                f"fault.min-replies = {s.live.min_replies} ({reasons})"
            )
        state, s.metrics = self.merge_train(s.state, server_round, s.updates)
        recall = dict(s.state.facts.get("recall", {})) | {
            str(u.client): server_round for u in s.updates if u.kept
        }
        facts = {**state.facts, "recall": recall, "pool": pooled_sums(s.updates)}
        s.state = replace(state, round=server_round, facts=facts)
        return None, MetricRecord(dict(s.metrics))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        s = self._session
        orders = self.plan_evaluate(s.state, server_round, s.roster.clients())
        return s.messages("evaluate", server_round, self._stamp(s, server_round, orders))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        s = self._session
        s.receive(replies, check=None)
        s.state, s.metrics = self.merge_evaluate(s.state, server_round, s.updates)
        return MetricRecord(dict(s.metrics))

    def summary(self) -> None:
        log.info("strategy=%s", self)

    # --- the network -----------------------------------------------------------

    def _meet(self, grid: Grid, s: Session, *, at_start: bool) -> None:
        """Ask every node that is not known yet who it is (query.hello); forget those that left."""
        present = _present(grid, s.live) if at_start else sorted(grid.get_node_ids())
        asked = s.roster.forget_all_but(present)
        messages = [
            Message(wire.encode_facts(dict(s.live.knobs)), dst_node_id=n, message_type="query.hello")
            for n in asked
        ]
        problems = s.roster.enter(asked, list(_collect(grid, messages, s.live.round_deadline_s)))
        if problems and at_start:
            raise ConfigError(
                f"{len(problems)} of {len(asked)} clients cannot take part: {'; '.join(problems)}"
            )
        for problem in problems:
            log.warning("client left out: %s", problem)

    def _exchange(self, grid: Grid, s: Session, messages: Iterable[Message]) -> Replies:
        """Send, and take replies as they come until all are in or the deadline has passed."""
        started = time.monotonic()
        sent = list(messages)
        replies = list(_collect(grid, sent, s.live.round_deadline_s))
        return Replies(
            replies,
            bytes_down=sum(wire.size_of(m.content) for m in sent),
            bytes_up=sum(wire.size_of(m.content) for m in replies if m.has_content()),
            seconds=time.monotonic() - started,
        )


def sample(everyone: Sequence[Client], fraction: float, seed: int, rnd: int) -> list[Client]:
    """The cohort of a round: max(1, round(fraction * n)) clients by (seed, round), ascending by id."""
    count = max(1, round(fraction * len(everyone)))
    chosen = rng_for(seed, "cohort", rnd).sample(sorted(c.id for c in everyone), count)
    return [c for c in everyone if c.id in set(chosen)]


def _collect(grid: Grid, messages: Sequence[Message], timeout_s: float) -> Iterable[Message]:
    """Replies as they arrive, until all have come or `timeout_s` has passed."""
    if not messages:
        return
    deadline = time.monotonic() + timeout_s
    waiting = {i for i in grid.push_messages(messages) if i}
    while waiting:
        for reply in grid.pull_messages(waiting):
            waiting.discard(reply.metadata.reply_to_message_id)
            yield reply
        if waiting and time.monotonic() > deadline:
            return
        if waiting:
            time.sleep(POLL_S)


def _present(grid: Grid, live: Live) -> list[int]:
    """The nodes, once at least min_available_nodes are connected; RoundFailed when that takes too long."""
    deadline = time.monotonic() + live.start_timeout_s
    while len(nodes := sorted(grid.get_node_ids())) < live.min_available_nodes:
        if time.monotonic() > deadline:
            raise RoundFailed(
                f"{len(nodes)} clients connected within {live.start_timeout_s:g} s, "
                f"strategy.min-available-nodes = {live.min_available_nodes}; start more SuperNodes or lower it"
            )
        time.sleep(POLL_S)
    return nodes


def _by_client(updates: Sequence[Update]) -> Json:
    return {
        str(u.client): {n: v for n, v in u.metrics.items() if not n.startswith(SUM)}
        | {"examples": u.examples}
        for u in updates
    }


def _split(updates: Sequence[Update], seconds: float) -> dict[str, float]:
    """Where an exchange's wall time went, read along the slowest client; wire is what it does not account for."""
    times = [(u.metrics.get("seconds/load", 0.0), u.metrics.get("seconds/train", 0.0)) for u in updates]
    load, train = max(times, key=sum, default=(0.0, 0.0))
    return {"load": load, "train": train, "wire": max(0.0, seconds - load - train)}
