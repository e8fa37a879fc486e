"""Strategy: hooks that an algorithm overrides, and the round loop that calls them."""

import logging
import time
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from core import wire
from core.errors import ConfigError, RoundFailed
from core.naming import client_label
from core.sections import Config, LoraConfig, StrategyConfig
from core.tree import Tree
from core.types import Client, Json, Metrics, Order, OrderOption, ServerState, Update
from strategies.aggregation.fold import Fold, Mean, Merged, Share
from strategies.aggregation.lora import Lora
from strategies.clients.checks import checked_scores, checked_update
from strategies.clients.rule import DEFAULT_RULE, ClientRule
from strategies.rounds.meeting import meet
from strategies.rounds.metrics import base_loads, by_client, pooled_sums, split_seconds, weighted_mean
from strategies.rounds.session import Exchange, RunContext, Session, collect
from strategies.rounds.weighting import sample

log = logging.getLogger(__name__)


class Strategy(FlowerStrategy):
    """A federated algorithm as pure functions on a state value.

    A subclass overrides only hooks. A hook reads its arguments and the hyper-parameter fields, changes
    neither, and stores nothing on self. It has no access to messages, clock or disk.
    """

    order_options: ClassVar[Mapping[str, OrderOption]] = {}  # of its orders, beyond those of the task
    metrics: ClassVar[tuple[str, ...]] = ()  # names or patterns of what clients report for it alone
    allows_private_parts: ClassVar[bool] = True  # whether clients may have parameters that never leave them
    server_learns: ClassVar[bool] = True  # whether the server's adapters change
    groups_clients: ClassVar[bool] = False  # whether each group of clients has an adapter

    _session: Session  # of the current run; hooks must not read it

    def with_lora(self, lora: LoraConfig) -> Self:
        """Return this strategy with the settings lora.*. Raises ConfigError if they cannot be combined."""
        if Lora.read(lora).aggregation != "separate":
            raise ConfigError(
                f"lora.aggregation = {lora.aggregation!r} has no effect with strategy.name = "
                f"{type(self).__name__.lower()!r}, which averages no adapters"
            )
        return self

    def conflicts(self, config: Config) -> Iterator[str]:
        """Yield the reasons why this strategy cannot run with other settings: keys, values and what to do."""
        return iter(())

    def check_participation(self, participation: StrategyConfig) -> None:
        """Raise ConfigError if the smallest round that these settings allow is too small for the algorithm."""

    # --- hooks ---------------------------------------------------------------

    def init(self, adapters: dict[str, Tree], seed: int) -> ServerState:
        """Return the state before the first round."""
        return ServerState(seed=seed, round=0, adapters=adapters)

    def plan_train(self, state: ServerState, rnd: int, cohort: list[Client]) -> list[Order]:
        """Return the training orders of a round. Default: all clients of the cohort train the global adapter."""
        return [Order(c.id, {"global": state.adapters["global"]}) for c in cohort]

    def fold(self, state: ServerState, rnd: int, spool: Path) -> Fold:
        """Return the aggregator that takes a round's updates one by one. Default: their mean, weighted by examples.

        spool: a folder for an aggregator that must keep updates until the last is in (strategies/rounds/spool.py).
        """
        return Mean(lambda update, name: Share(update.examples))

    def merge_train(self, state: ServerState, rnd: int, merged: Merged) -> tuple[ServerState, Metrics]:
        """Return the next state and the round's metrics, from its updates and their aggregate."""
        raise NotImplementedError

    def remarks(self, updates: Sequence[Update]) -> list[str]:
        """Return warnings about a merged round, a sentence each, e.g. that too few clients answered."""
        return []

    def plan_evaluate(self, state: ServerState, rnd: int, everyone: list[Client]) -> list[Order]:
        """Return the evaluation orders after a round. Default: all clients score the global adapter."""
        return [Order(c.id, {"global": state.adapters["global"]}) for c in everyone]

    def merge_evaluate(
        self, state: ServerState, rnd: int, updates: list[Update]
    ) -> tuple[ServerState, Metrics]:
        return state, weighted_mean(updates)

    def must_evaluate(self, rnd: int) -> bool:
        """Whether the algorithm needs the evaluation after round rnd, whatever eval.every says."""
        return False

    def client_rule(self, rule: ClientRule) -> ClientRule:
        """Return `rule` with the algorithm's changes: how clients train, which tensors they send and remember.

        rule: what lora.aggregation needs; the result trains and shares nothing beyond it.
        """
        return rule

    def final(self, state: ServerState) -> dict[str, Tree]:
        """Return the adapters to export, by name; the first is used where only one can be."""
        return dict(state.adapters)

    def lora_rule(self) -> ClientRule:
        """Return which tensors lora.aggregation trains and shares."""
        return DEFAULT_RULE

    @typing.final
    def local_rule(self) -> ClientRule:
        """Return how clients train: `client_rule`, within what lora.aggregation trains and shares."""
        limits = self.lora_rule()
        return self.client_rule(limits).within(limits)

    # --- the loop ------------------------------------------------------------

    def run(self, grid: Grid, context: RunContext, state: ServerState, rounds: int) -> ServerState:
        """Run the rounds state.round + 1 to `rounds`; a resumed run is the same call with its last state.

        Raises ConfigError if a client cannot take part, RoundFailed if too few answer. Rounds that
        `context.on_round` committed before are kept.
        """
        s = self._session = Session(context, replace(state, rounds=rounds, votes=context.votes))
        meet(grid, s, at_start=True)
        context.on_hello(s.roster.hellos)
        if state.round == 0 and not context.base_scored:
            context.on_round(
                s.state, self._evaluate(grid, s, 0, {"round": 0, "participants": [], "failed": {}})
            )
        for rnd in range(state.round + 1, rounds + 1):
            started = time.monotonic()
            meet(grid, s, at_start=False)
            record = self._train(grid, s, rnd)
            if (
                rnd == rounds
                or (context.eval_every and rnd % context.eval_every == 0)
                or self.must_evaluate(rnd)
            ):
                self._evaluate(grid, s, rnd, record)
            if "route" in s.state.facts:
                record["route"] = s.state.facts["route"]
            record["seconds"]["total"] = time.monotonic() - started
            context.on_round(s.state, record)
        return s.state

    def _train(self, grid: Grid, s: Session, rnd: int) -> Json:
        s.exchange = Exchange()
        messages = self.configure_train(rnd, ArrayRecord(), ConfigRecord(), grid)
        self.aggregate_train(rnd, self._answers(grid, s, messages))
        remarks = self.remarks(s.updates)
        times = {**split_seconds(s.updates, s.exchange.seconds), "aggregate": s.exchange.aggregate_seconds}
        return {
            "round": rnd,
            "participants": [u.client for u in s.updates],
            "failed": dict(s.failed),
            **({"remarks": remarks} if remarks else {}),
            "train": {"mean": s.metrics, "clients": by_client(s.updates)},
            "bytes_down": s.exchange.bytes_down,
            "bytes_up": s.exchange.bytes_up,
            "loads": base_loads(s.updates, {}),
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
            record["eval"] = {"mean": s.metrics, "clients": by_client(s.updates)}
        record["bytes_down"] = record.get("bytes_down", 0) + s.exchange.bytes_down
        record["bytes_up"] = record.get("bytes_up", 0) + s.exchange.bytes_up
        record["loads"] = base_loads(s.updates, record.get("loads", {}))
        record.setdefault("seconds", {})["evaluate"] = s.exchange.seconds
        return record

    def _stamp(self, s: Session, rnd: int, orders: list[Order]) -> list[Order]:
        """Set the fields that every order carries, and add the task's options from the counts of all clients."""
        task_options = s.context.task_options({**s.pooled_row_counts(), **s.state.pooled})
        declared = self.order_options.keys() | s.context.task_order_options.keys()
        if undeclared := sorted({*task_options, *(name for o in orders for name in o.options)} - declared):
            raise ConfigError(
                f"{type(self).__name__} or the task adds the option {undeclared[0]!r} to orders without declaring it; "
                "name it in order_options, so that a site's policy can check it"
            )
        return [
            replace(
                o,
                run=s.context.run,
                base=s.context.base,
                round=rnd,
                recall=s.state.recall.get(o.client, 0),
                clients=s.state.clients,
                cohort=len(orders),
                options={**task_options, **o.options},
            )
            for o in orders
        ]

    # --- Flower's methods: encode what a hook plans, decode what it merges ------
    # Adapters are in the session's state, so Flower's arguments `arrays` and `config` stay empty.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        s = self._session
        cohort = sample(
            s.roster.clients(), s.context.fraction_train, s.context.sampling, s.state.seed, server_round
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
        fold = self.fold(s.state, server_round, s.context.spool)
        rule, fault, hellos = self.local_rule(), s.context.fault, s.roster.hellos
        s.receive(
            replies,
            fold.add,
            lambda order, update: checked_update(
                order, update, rule, fault, int(hellos[order.client]["examples"])
            ),
        )
        if len(s.updates) < (quorum := s.context.quorum(len(s.orders))):
            names = s.roster.names
            reasons = "; ".join(
                f"client {client_label(int(c), names)}: {reason}" for c, reason in s.failed.items()
            )
            raise RoundFailed(
                f"round {server_round}: {len(s.updates)} of {len(s.orders)} clients answered, {quorum} are required "
                f"by fault.min-replies = {s.context.fault.min_replies} and "
                f"fault.min-fraction = {s.context.fault.min_fraction:g} ({reasons})"
            )
        started = time.monotonic()
        merged = Merged(tuple(s.updates), fold.result())
        state, s.metrics = self.merge_train(s.state, server_round, merged)
        s.exchange.aggregate_seconds += time.monotonic() - started
        recall = {**state.recall, **{u.client: server_round for u in s.updates if u.saved_memory}}
        s.state = replace(state, round=server_round, recall=recall, pooled=pooled_sums(s.updates))
        return None, MetricRecord(dict(s.metrics))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        s = self._session
        orders = self.plan_evaluate(s.state, server_round, s.roster.clients())
        return s.messages("evaluate", server_round, self._stamp(s, server_round, orders))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        s = self._session
        s.receive(replies, lambda update: None, lambda order, update: checked_scores(update, s.context.fault))
        s.state, s.metrics = self.merge_evaluate(s.state, server_round, s.updates)
        return MetricRecord(dict(s.metrics))

    def summary(self) -> None:
        log.info("strategy=%s", self)

    def _answers(self, grid: Grid, s: Session, messages: Iterable[Message]) -> Iterator[Message]:
        """Send the messages and yield replies as they come, until all are in or the deadline has passed."""
        started = time.monotonic()

        def counted() -> Iterator[Message]:
            for message in messages:
                s.exchange.bytes_down += wire.size_of(message.content)
                yield message

        for reply in collect(grid, counted(), s.context.fault.round_deadline_s, s.exchange.node_of):
            if reply.has_content():
                s.exchange.bytes_up += wire.size_of(reply.content)
            yield reply
            s.exchange.seconds = time.monotonic() - started
        s.exchange.seconds = time.monotonic() - started
