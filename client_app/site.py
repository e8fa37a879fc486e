"""Site: how a client carries out orders. Plain values in, plain values out; the Flower app is a thin adapter to it."""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from client_app import comparison, personal_model
from client_app.declarations import check_metrics
from client_app.hello import describe
from client_app.node import Node
from client_app.private_memory import Memory
from core.caches import Holds, cached
from core.errors import BaseMismatch, ConfigError
from core.factors import MERGED
from core.sections import Config, TrainConfig
from core.seeds import seed_for
from core.tree import Tree
from core.types import HelloRequest, Json, Metrics, Order, Update
from strategies.base import Strategy
from strategies.clients.rule import FINISH, PERSONAL, ClientRule, Outcome
from strategies.rounds.metrics import SUM
from tasks.base import Example, Row, Task
from tasks.data.base import Planted
from tasks.data.clients.rows import ClientRows, client_rows, stamp
from tasks.data.clients.split import set_aside
from tasks.forward import processes
from tasks.forward.setup import load_base
from tasks.model.adapter import get_adapter, get_private, initial_adapter, set_adapter
from tasks.model.base import Base
from tasks.pretrained.loading import check_length
from tasks.scoring import truth
from tasks.tokens.cache import Cache
from tasks.tokens.encode import Encoder
from tasks.training import engine, schedule
from tasks.training.loop import TrainReport
from tasks.training.stepper import NO_HOOKS, LocalHooks


@dataclass(frozen=True)
class Site:
    """One client: its configuration, data and disk."""

    config: Config
    node: Node

    @property
    def state_dir(self) -> Path:
        chosen = self.node.state_dir or self.config.client.state_dir or os.environ.get("ACCORD_HOME", "")
        try:
            return Path(chosen or "~/.accord").expanduser()
        except RuntimeError as error:
            raise ConfigError(
                "this user has no home folder for caches and private memory; set client.state-dir or ACCORD_HOME"
            ) from error

    @property
    def task(self) -> Task:
        return self.config.task_choice.build()

    @property
    def strategy(self) -> Strategy:
        return self.config.build_strategy()

    @cached_property
    def cache(self) -> Cache:
        return Cache(self.state_dir / "cache" / str(self.node.client))

    def base(self, expected: str = "") -> Base:
        """Return the base model, loaded once per process.

        expected: the fingerprint that the server named; "" skips the check.

        Raises BaseMismatch if the fingerprints differ.
        """
        base = load_base(self.config.model, self.config.lora, self.task.private_parts)
        check_length(base.causal, self.config.train.max_length, self.config.model.name)
        if expected and base.fingerprint != expected:
            raise BaseMismatch(
                f"client {self.node.client} has a different base model than the server: fingerprint "
                f"{base.fingerprint[:12]} here, {expected[:12]} there, both as {self.config.model.name!r}"
            )
        return base

    def rows(self, *, everyone: bool = False) -> ClientRows:
        version = stamp(self.config, self.node.data_path, self.node.data_source)
        return _rows(self.config, self.node, everyone, version)

    def parts(self, *, everyone: bool = False) -> tuple[list[Row], list[Row]]:
        """Split the client's training rows into rows to train on and rows on which adapters are compared."""
        rows, share = self.rows(everyone=everyone).train, self.rule().comparison_share
        if not share:
            return rows, []
        seed = seed_for(self.config.run.seed, "aside", self.node.client)
        return set_aside(rows, share, seed)

    def counts(self) -> tuple[int, int, int]:
        """Return the numbers of usable rows to train on, to compare adapters on, and held out."""
        base, parts = self.base(), self.parts()
        train, comparison_rows = [
            engine.encode_rows(base, self.task, rows, self.config, self.cache).usable for rows in parts
        ]
        heldout = engine.heldout_of(base, self.task, self.heldout(), self.config, self.cache)
        return len(train), len(comparison_rows), len(heldout)

    def drawn(self, order: Order, rows: int) -> int:
        """Return the largest number of the client's `rows` that the training of `order` can draw."""
        cfg = schedule.of_round(self.config.train, rows, order, self.config.run.num_server_rounds)
        return min(rows, cfg.local_steps * cfg.per_device_batch_size * cfg.gradient_accumulation_steps)

    def hello(self, request: HelloRequest) -> Json:
        """Describe this client and its data in counts and fingerprints; no row is included."""
        self.rule()  # so that a strategy that the engine cannot run is refused before the first round
        return describe(self, request)

    def train(self, order: Order) -> Update:
        """Run one local training from the order's adapter and recalled memory; return the trees to share."""
        started, rnd, rule = time.monotonic(), order.round, self.rule()
        memory = Memory(self.state_dir, order.run, self.node.client)
        base = self.base(order.base)
        recalled = memory.load(order.recall)
        private = self._with_private_parts(base, recalled)
        rows, _ = self.parts(everyone=order.options.get("rows") == "all")
        examples = engine.encode_training_rows(base, self.task, rows, self.config, self.cache)
        order = self._complete(base, order)
        before = rule.start(order, private)
        loaded = time.monotonic()
        rounds = self.config.run.num_server_rounds
        cfg = schedule.of_round(self.config.train, len(examples.usable), order, rounds)
        hooks = LocalHooks(
            correct=rule.correct(order, private),
            after_step=rule.after_step(order, private, cfg.learning_rate),
            trains=lambda name: rule.learns(name, rnd),
            private_steps=rule.newcomer_steps if rnd > 1 and not recalled else 0,
            wants_gradients=rule.wants_gradients,
            moments=private,
        )
        report = self._train_adapter(base, order, before, examples.usable, cfg, hooks)
        after = {**get_adapter(base), **get_private(base)}
        outcome = Outcome(before, after, report.steps, cfg.learning_rate, report.gradients)
        shared, memories = rule.finish(order, private, outcome)
        memories |= report.moments
        if rule.pull:
            hooks = LocalHooks(correct=rule.pull(order), trains=hooks.trains)
            self._train_adapter(
                base, order, private.get(PERSONAL, before), examples.usable, cfg, hooks, "personal"
            )
            memories[PERSONAL] = get_adapter(base)
        sums = {SUM + name: value for name, value in report.sums.items()}
        check_metrics(self.config, [*report.metrics, *sums])
        if memories and processes.is_leader():
            memory.save(rnd, memories, recalled=order.recall)
        seconds = {"seconds/load": loaded - started, "seconds/train": time.monotonic() - loaded}
        metrics = {**report.metrics, "learning_rate": cfg.learning_rate, **sums, **seconds}
        return Update(
            self.node.client,
            len(examples.usable),
            order.adapter,
            shared,
            metrics,
            tokens=sum(len(completion) for e in examples.usable for completion in e.completions),
            saved_memory=bool(memories),
        )

    def evaluate(self, order: Order) -> Update:
        """Score the held-out rows with the adapter that the client would use; compare several if the order asks for it.

        After the last round a client with a personal model exports it (client_app/personal_model.py).
        """
        recalled = Memory(self.state_dir, order.run, self.node.client).load(order.recall)
        base = self.base(order.base)
        comparisons: Metrics = {}
        if order.compare:
            trees = self._adapters(base, order, order.compare)
            comparisons |= comparison.losses(
                base, self.task, self.parts()[1], trees, order, self.config, self.cache, seed=self._data_seed
            )
        if "vote" in order.options:
            weights = comparison.ballots(str(order.options["vote"]))
            trees = self._adapters(base, order, weights)
            comparisons |= comparison.vote(
                base, self.task, self.heldout(), trees, weights, self.config, self.cache
            )
        order = self._complete(base, order)
        tree = self.rule().scored(order, self._with_private_parts(base, recalled))
        merged = order.trees.get(MERGED)
        finish = int(order.options.get(FINISH, 0))
        if finish:
            tree = self._fine_tuned(base, order, tree, finish)
        set_adapter(base, tree, merged)
        metrics: Metrics = engine.evaluate(base, self.task, self.heldout(), self.config, self.cache)
        metrics |= self._truth(base, order.round)
        last = order.round == self.config.run.num_server_rounds
        if last and (finish or recalled.keys() & {"own", PERSONAL}) and processes.is_leader():
            folder = personal_model.folder(self.state_dir, order.run, self.node.client)
            personal_model.export(base, tree, merged, folder, self.config, metrics.get("combined/lambda"))
        examples = int(metrics.pop("examples", 0))
        metrics |= comparisons
        check_metrics(self.config, metrics)
        return Update(self.node.client, examples, order.adapter, {}, metrics)

    def _truth(self, base: Base, rnd: int) -> Metrics:
        """Score the model's generated answers before and after a run, if the source has a planted truth."""
        source = self.config.source_choice.build()
        planted = isinstance(source, Planted) and not self.node.data_path and self.task.reads == "logps"
        if not planted or rnd not in (0, self.config.run.num_server_rounds):
            return {}
        data, kind = self.config.data, self.rows().truth
        typed = data.partitioner == "natural" and not (data.flipped_clients and (kind or 0) % 2)
        encoder = Encoder(base.tokenizer, data.prompt_format, self.config.train.max_length)
        client = self.node.client if typed else None
        return truth.grade_model(base, encoder, source, seed=self.config.run.seed, client=client)

    def heldout(self) -> list[Row]:
        heldout, most = self.rows().heldout, self.config.eval.max_rows
        return heldout[:most] if most else heldout

    def _train_adapter(
        self,
        base: Base,
        order: Order,
        start: Tree,
        examples: Sequence[Example],
        cfg: TrainConfig,
        hooks: LocalHooks,
        purpose: str = "batches",
    ) -> TrainReport:
        """Train the base's adapter in place from `start`; `purpose` seeds the batches."""
        set_adapter(base, start, order.trees.get(MERGED))
        return engine.train(
            base,
            self.task,
            examples,
            cfg,
            seed=seed_for(self.config.run.seed, purpose, order.round, self.node.client),
            data_seed=self._data_seed,
            rnd=order.round,
            options=order.options,
            cache=self.cache,
            hooks=hooks,
        )

    def _fine_tuned(self, base: Base, order: Order, tree: Tree, steps: int) -> Tree:
        """Return `tree` after `steps` more plain optimiser steps on the client's rows."""
        examples = engine.encode_training_rows(base, self.task, self.parts()[0], self.config, self.cache)
        rounds = self.config.run.num_server_rounds
        cfg = schedule.of_round(self.config.train, len(examples.usable), order, rounds)
        cfg = replace(cfg, local_steps=steps, optimizer_state="reset")
        self._train_adapter(base, order, tree, examples.usable, cfg, NO_HOOKS, FINISH)
        return {**get_adapter(base), **get_private(base)}

    def _with_private_parts(self, base: Base, memory: dict[str, Tree]) -> dict[str, Tree]:
        """Return `memory` with the initial values of private parts that it does not hold yet."""
        private = memory.get("own", {})
        if base.private_parts.tensors.keys() <= private.keys():
            return memory
        return {
            **memory,
            "own": {**base.private_parts.start(self.config.run.seed, self.node.client), **private},
        }

    def _adapters(self, base: Base, order: Order, names: Iterable[str]) -> dict[str, Tree]:
        """Return several adapters of an order, each complete."""
        return {name: self._complete(base, replace(order, adapter=name)).trees[name] for name in names}

    @property
    def _data_seed(self) -> int:
        """The seed of what stays fixed for this client over all rounds."""
        return seed_for(self.config.run.seed, "pairs", self.node.client)

    def _complete(self, base: Base, order: Order) -> Order:
        """Return the order with the tensors that its adapter omits; they have the common initial values."""
        tree = order.trees[order.adapter]
        if base.adapter.keys() <= tree.keys():
            return order
        tree = {**initial_adapter(base, self.config.run.seed, order.adapter), **tree}
        return replace(order, trees={**order.trees, order.adapter: tree})

    def rule(self) -> ClientRule:
        """Return the strategy's client rule. Raises ConfigError if the engine cannot carry it out."""
        rule = self.strategy.local_rule()
        if self.config.train.engine == "trl" and not rule.plain:
            raise ConfigError(
                f"strategy.name = {self.config.strategy_choice.name!r} changes the local optimiser steps, which "
                "train.engine = 'trl' cannot do; use train.engine = 'accord'"
            )
        return rule


@cached(Holds.RUN, maxsize=32)  # an actor of a simulation serves many clients; `files` changes with the files
def _rows(config: Config, node: Node, everyone: bool, files: Json) -> ClientRows:
    task = config.task_choice.build()
    options = {"path": node.data_path, "reader": node.data_source, "everyone": everyone}
    return client_rows(config, task, node.client, node.clients, **options)
