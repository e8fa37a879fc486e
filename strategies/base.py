"""Strategy: pure hooks that an algorithm overrides, and the round loop that calls them."""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Self

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from core import wire
from core.errors import ConfigError, RoundFailed, TreeMismatch
from core.factors import is_private
from core.naming import client_label
from core.sections import LoraConfig, StrategyConfig
from core.tree import Tree, norm, same_layout
from core.types import Client, Json, Metrics, Order, ServerState, Update
from strategies.aggregation.fold import Fold, Mean, Merged, Share
from strategies.aggregation.lora import Lora
from strategies.clients.rule import ClientRule
from strategies.rounds.metrics import SUM, pooled_sums, weighted_mean
from strategies.rounds.session import Exchange, Live, Session, collect, present
from strategies.rounds.weighting import sample

log = logging.getLogger(__name__)


class Strategy(FlowerStrategy):
    """A federated algorithm as pure functions on a state value.

    A subclass overrides hooks only; a hook reads its arguments and the hyper-parameter fields, changes
    neither, and stores nothing on self. It never sees a message, a clock or a disk.
    """

    _session: Session  # of the run under way; the hooks never read it

    def under(self, lora: LoraConfig) -> Self:
        """This strategy with lora.aggregation and what goes with it; ConfigError where they do not fit."""
        if Lora.read(lora).aggregation != "separate":
            raise ConfigError(
                f"lora.aggregation = {lora.aggregation!r} has no effect with strategy.name = "
                f"{type(self).__name__.lower()!r}, which averages no adapters"
            )
        return self

    def check_participation(self, participation: StrategyConfig) -> None:
        """Raise ConfigError where the smallest round that these settings allow is too small for the algorithm."""

    # --- hooks ---------------------------------------------------------------

    def init(self, adapters: dict[str, Tree], seed: int) -> ServerState:
        return ServerState(seed=seed, round=0, adapters=adapters)

    def plan_train(self, state: ServerState, rnd: int, cohort: list[Client]) -> list[Order]:
        """Whom to ask to train what. Default: everyone in the cohort, the global adapter."""
        return [Order(c.id, {"global": state.adapters["global"]}) for c in cohort]

    def fold(self, state: ServerState, rnd: int) -> Fold:
        """What the updates of a round are folded into as they come. Default: their mean by examples."""
        return Mean(lambda update, name: Share(update.examples))

    def merge_train(self, state: ServerState, rnd: int, merged: Merged) -> tuple[ServerState, Metrics]:
        """The next state from a round's updates and what they were folded into."""
        raise NotImplementedError

    def remarks(self, updates: Sequence[Update]) -> list[str]:
        """What an operator must know of a round that was merged, a sentence each, e.g. that too few answered."""
        return []

    def plan_evaluate(self, state: ServerState, rnd: int, everyone: list[Client]) -> list[Order]:
        """Whom to ask to score what on its held-out rows. Default: everyone, the global adapter."""
        return [Order(c.id, {"global": state.adapters["global"]}) for c in everyone]

    def merge_evaluate(
        self, state: ServerState, rnd: int, updates: list[Update]
    ) -> tuple[ServerState, Metrics]:
        return state, weighted_mean(updates)

    def must_evaluate(self, rnd: int) -> bool:
        """Whether the state needs the evaluation that follows round rnd, however rarely the user wants one."""
        return False

    def client_rule(self) -> ClientRule:
        return ClientRule()

    def final(self, state: ServerState) -> dict[str, Tree]:
        """The adapters that a run leaves, by name; the first is the one to use where only one can be."""
        return dict(state.adapters)

    # --- the loop ------------------------------------------------------------

    def run(self, grid: Grid, live: Live, state: ServerState, rounds: int) -> ServerState:
        """Rounds state.round + 1 .. rounds. A fresh and a resumed run are the same call.

        Raises ConfigError when a client cannot take part, RoundFailed when too few answer; what
        `live.on_round` committed before stays.
        """
        s = self._session = Session(
            live, replace(state, facts={**state.facts, "rounds": rounds, "votes": live.votes})
        )
        self._meet(grid, s, at_start=True)
        live.on_hello(s.roster.said)
        if state.round == 0 and not live.base_scored:
            live.on_round(s.state, self._evaluate(grid, s, 0, {"round": 0, "participants": [], "failed": {}}))
        for rnd in range(state.round + 1, rounds + 1):
            started = time.monotonic()
            self._meet(grid, s, at_start=False)
            record = self._train(grid, s, rnd)
            if rnd == rounds or (live.eval_every and rnd % live.eval_every == 0) or self.must_evaluate(rnd):
                self._evaluate(grid, s, rnd, record)
            if "route" in s.state.facts:
                record["route"] = s.state.facts["route"]
            record["seconds"]["total"] = time.monotonic() - started
            live.on_round(s.state, record)
        return s.state

    def _train(self, grid: Grid, s: Session, rnd: int) -> Json:
        s.exchange = Exchange()
        messages = self.configure_train(rnd, ArrayRecord(), ConfigRecord(), grid)
        self.aggregate_train(rnd, self._answers(grid, s, messages))
        remarks = self.remarks(s.updates)
        times = {**_split(s.updates, s.exchange.seconds), "aggregate": s.exchange.using}
        return {
            "round": rnd,
            "participants": [u.client for u in s.updates],
            "failed": dict(s.failed),
            **({"remarks": remarks} if remarks else {}),
            "train": {"mean": s.metrics, "clients": _by_client(s.updates)},
            "bytes_down": s.exchange.bytes_down,
            "bytes_up": s.exchange.bytes_up,
            "loads": _loads(s.updates, {}),
            "seconds": times,
        }

    def _evaluate(self, grid: Grid, s: Session, rnd: int, record: Json) -> Json:
        s.exchange = Exchange()
        messages = self.configure_evaluate(rnd, ArrayRecord(), ConfigRecord(), grid)
        self.aggregate_evaluate(rnd, self._answers(grid, s, messages))
        for client, reason in s.failed.items():
            before = f"{record['failed'][client]}; " if client in record["failed"] else ""
            record["failed"][client] = f"{before}evaluation: {reason}"
        if s.updates:
            record["eval"] = {"mean": s.metrics, "clients": _by_client(s.updates)}
        record["bytes_down"] = record.get("bytes_down", 0) + s.exchange.bytes_down
        record["bytes_up"] = record.get("bytes_up", 0) + s.exchange.bytes_up
        record["loads"] = _loads(s.updates, record.get("loads", {}))
        record.setdefault("seconds", {})["evaluate"] = s.exchange.seconds
        return record

    def _check_update(self, order: Order, update: Update) -> str | None:
        """Why an update cannot be folded in, or None. What a client says is not trusted."""
        fault, said = self._session.live.fault, self._session.roster.said[order.client]
        if not 0 < update.examples <= fault.max_examples:
            return f"it says {update.examples} examples; fault.max-examples = {fault.max_examples}"
        if "rows" not in order.knobs and update.examples != said["examples"]:
            return f"it says {update.examples} examples, at the start it said {said['examples']}"
        if not 0 <= update.tokens <= fault.max_examples * 1000:
            return f"it says {update.tokens} tokens in {update.examples} examples"
        rule, rnd = self.client_rule(), int(order.knobs["rnd"])
        if set(update.trees) != set(rule.sends):
            return f"it sends {sorted(update.trees)}, expected are {sorted(rule.sends)}"
        expected = {n: t for n, t in order.trees[order.adapter].items() if rule.leaves(n, rnd)}
        for name, tree in update.trees.items():
            if private := [n for n in tree if is_private(n)]:
                return f"it sends the private tensor {private[0]!r} in {name}"
            try:
                same_layout(expected, tree, where=name)
            except TreeMismatch as error:
                return str(error)
            size = norm(tree)
            if not math.isfinite(size):
                return f"{name} holds NaN or Inf, or is too large for float32"
            if name == "delta" and size > fault.max_delta_norm:
                return f"the norm of its delta is {size:.3g}, fault.max-delta-norm = {fault.max_delta_norm:g}"
            update.metrics[f"norm/{name}"] = size
        return _bad_metric(update)

    def _check_scores(self, order: Order, update: Update) -> str | None:
        """Why the scores of an evaluation cannot be used, or None."""
        most = self._session.live.fault.max_examples
        if not 0 <= update.examples <= most:
            return f"it says {update.examples} examples; fault.max-examples = {most}"
        if update.trees:
            return f"it sends {sorted(update.trees)} with its scores"
        return _bad_metric(update)

    def _stamp(self, s: Session, rnd: int, orders: list[Order]) -> list[Order]:
        """What every order carries besides the algorithm's own: round, run, the task's brief, the memory to recall."""
        brief = s.live.brief({**s.census(), **s.state.facts.get("pool", {})})
        recall = s.state.facts.get("recall", {})
        common = {**s.live.knobs, **brief, "clients": s.state.facts["clients"], "cohort": len(orders)}
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
        cohort = sample(
            s.roster.clients(), s.live.fraction_train, s.live.sampling, s.state.seed, server_round
        )
        return s.messages(
            "train",
            server_round,
            self._stamp(s, server_round, self.plan_train(s.state, server_round, cohort)),
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        s = self._session
        fold = self.fold(s.state, server_round)
        s.receive(replies, fold.add, self._check_update)
        if len(s.updates) < (quorum := s.live.quorum(len(s.orders))):
            names = s.roster.names
            reasons = "; ".join(f"client {client_label(int(c), names)}: {why}" for c, why in s.failed.items())
            raise RoundFailed(
                f"round {server_round}: {len(s.updates)} of {len(s.orders)} clients answered, {quorum} are needed "
                f"by fault.min-replies = {s.live.fault.min_replies} and "
                f"fault.min-fraction = {s.live.fault.min_fraction:g} ({reasons})"
            )
        started = time.monotonic()
        merged = Merged(tuple(s.updates), fold.result())
        state, s.metrics = self.merge_train(s.state, server_round, merged)
        s.exchange.using += time.monotonic() - started
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
        s.receive(replies, lambda update: None, self._check_scores)
        s.state, s.metrics = self.merge_evaluate(s.state, server_round, s.updates)
        return MetricRecord(dict(s.metrics))

    def summary(self) -> None:
        log.info("strategy=%s", self)

    # --- the network -----------------------------------------------------------

    def _meet(self, grid: Grid, s: Session, *, at_start: bool) -> None:
        """Ask every node that is not known yet who it is (query.hello); forget those that left."""
        here = present(grid, s.live) if at_start else sorted(grid.get_node_ids())
        asked = s.roster.forget_all_but(here)
        messages = [
            Message(wire.encode_facts(dict(s.live.knobs)), dst_node_id=n, message_type="query.hello")
            for n in asked
        ]
        fault = s.live.fault
        timeout_s = fault.start_timeout_s if at_start else min(fault.start_timeout_s, fault.round_deadline_s)
        said = [m for m in collect(grid, messages, timeout_s, {}) if m.metadata.src_node_id in asked]
        silent = set(asked) - {m.metadata.src_node_id for m in said}  # Flower's own errors: the node is gone
        problems = s.roster.enter(said, fault.max_examples, s.failed)
        if at_start and len(said) > len(s.roster.nodes) + len(s.roster.refused):
            raise ConfigError(
                f"{len(problems)} of {len(asked)} clients cannot take part: {'; '.join(problems)}"
            )
        problems += [f"node {n} did not say within {timeout_s:g} s who it is" for n in sorted(silent)]
        for problem in problems:
            log.warning("client left out: %s", problem)
            if at_start:
                s.live.say(f"client left out: {problem}")
        if at_start and len(s.roster.nodes) < s.live.min_available_nodes:
            raise RoundFailed(
                f"{len(s.roster.nodes)} clients can take part, strategy.min-available-nodes = "
                f"{s.live.min_available_nodes} ({'; '.join(problems)})"
            )
        if len(s.roster.nodes) < fault.min_replies:
            raise RoundFailed(
                f"{len(s.roster.nodes)} clients are still connected, fault.min-replies = {fault.min_replies}"
            )
        facts = s.state.facts
        clients = max(facts.get("clients", 0), len(s.roster.said))
        held = {str(c): said["examples"] for c, said in sorted(s.roster.said.items())}
        examples = {**facts.get("examples", {}), **held}
        s.state = replace(s.state, facts={**facts, "clients": clients, "examples": examples})

    def _answers(self, grid: Grid, s: Session, messages: Iterable[Message]) -> Iterator[Message]:
        """Send, and give the replies as they come until all are in or the deadline has passed."""
        started = time.monotonic()

        def counted() -> Iterator[Message]:
            for message in messages:
                s.exchange.bytes_down += wire.size_of(message.content)
                yield message

        for reply in collect(grid, counted(), s.live.fault.round_deadline_s, s.exchange.asked):
            if reply.has_content():
                s.exchange.bytes_up += wire.size_of(reply.content)
            yield reply
            s.exchange.seconds = time.monotonic() - started
        s.exchange.seconds = time.monotonic() - started


def _bad_metric(update: Update) -> str | None:
    bad = [name for name, value in update.metrics.items() if not math.isfinite(value)]
    return f"metric {bad[0]!r} is {update.metrics[bad[0]]}" if bad else None


def _by_client(updates: Sequence[Update]) -> Json:
    return {
        str(u.client): {n: v for n, v in u.metrics.items() if not n.startswith(SUM)}
        | {"examples": u.examples}
        for u in updates
    }


def _loads(updates: Sequence[Update], before: Mapping[str, int]) -> dict[str, int]:
    """How often each client loaded its base model, with what it loaded before; who loaded none is absent."""
    new = {str(u.client): u.loads for u in updates if type(u.loads) is int and u.loads > 0}
    return {client: before.get(client, 0) + new.get(client, 0) for client in sorted({*before, *new})}


def _split(updates: Sequence[Update], seconds: float) -> dict[str, float]:
    """Where an exchange's wall time went, read along the slowest client; wire is what it does not account for."""
    times = [(u.metrics.get("seconds/load", 0.0), u.metrics.get("seconds/train", 0.0)) for u in updates]
    load, train = max(times, key=sum, default=(0.0, 0.0))
    return {"load": load, "train": train, "wire": max(0.0, seconds - load - train)}
