"""What a client does with an order: plain values in, plain values out; the Flower app is a thin face on it."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from client_app.memory import Memory
from core.config import Config
from core.errors import BaseMismatch, ConfigError
from core.factors import MERGED
from core.seeds import rng_for, seed_for
from core.types import Json, Metrics, Order, Scalar, Update
from strategies.base import Strategy
from strategies.kit.client_rule import ClientRule, Outcome
from strategies.kit.metrics import SUM
from tasks.base import Row, Task
from tasks.kit import engine, partition, schedule
from tasks.kit.cache import Cache
from tasks.kit.choice import log_odds, margins, share_right
from tasks.kit.evaluate import choice_batch
from tasks.kit.loop import row_losses, weight
from tasks.kit.model import Base, get_adapter, initial_adapter, load_base, set_adapter
from tasks.kit.race import race
from tasks.kit.reference import reference_logps
from tasks.kit.rows import ClientRows, client_rows, stamp
from tasks.kit.stepper import Bend

MOST_ASIDE = 200  # rows


@dataclass(frozen=True)
class Node:
    """Who this client is: the facts of its node config."""

    client: int  # partition-id
    clients: int  # num-partitions
    data_path: str = ""  # its own private file; "": its share of the configured source
    state_dir: str = ""

    @staticmethod
    def read(node_config: Mapping[str, Scalar]) -> "Node":
        """Raises ConfigError when the SuperNode was started without saying who it is."""
        try:
            client, clients = int(node_config["partition-id"]), int(node_config["num-partitions"])
        except (KeyError, ValueError) as error:
            raise ConfigError(
                "a SuperNode needs --node-config 'partition-id=I num-partitions=N', "
                f"got {dict(node_config)!r}"
            ) from error
        if not 0 <= client < clients:
            raise ConfigError(
                f"partition-id must be in 0..num-partitions - 1 = 0..{clients - 1}, got {client}"
            )
        return Node(
            client, clients, str(node_config.get("data-path", "")), str(node_config.get("state-dir", ""))
        )


@dataclass(frozen=True)
class Site:
    """One client: its configuration, its data, its disk."""

    config: Config
    node: Node

    @property
    def state_dir(self) -> Path:
        chosen = self.node.state_dir or self.config.client.state_dir or os.environ.get("ACCORD_HOME", "")
        return Path(chosen).expanduser() if chosen else Path.home() / ".accord"

    @property
    def task(self) -> Task:
        return self.config.task_choice.build()

    @property
    def strategy(self) -> Strategy:
        return self.config.build_strategy()

    @property
    def cache(self) -> Cache:
        return Cache(self.state_dir / "cache" / str(self.node.client))

    def base(self, named: str = "") -> Base:
        """The base model, loaded once per process; BaseMismatch if the server's is another."""
        base = load_base(self.config.model, self.config.lora)
        if named and base.fingerprint != named:
            raise BaseMismatch(
                f"client {self.node.client} holds another base model than the server: "
                f"{base.fingerprint[:12]} here, {named[:12]} there, both as {self.config.model.name!r}"
            )
        return base

    def rows(self, *, everyone: bool = False) -> ClientRows:
        return _rows(self.config, self.node, everyone, stamp(self.config, self.node.data_path))

    def parts(self, *, everyone: bool = False) -> tuple[list[Row], list[Row]]:
        """The rows to train on, and those set aside to compare adapters.

        Rows of one prompt are on one side, unless the prompts say too little for that: where all ask the same, or
        one of them has far more rows than are to be set aside, rows are drawn.
        """
        rows, share = self.rows(everyone=everyone).train, self._rule().aside
        if not share:
            return rows, []
        share = min(share, MOST_ASIDE / len(rows))
        seed = seed_for(self.config.run.seed, "aside", self.node.client)
        train, aside = partition.held_out([_key(row["prompt"]) for row in rows], share, seed)
        if not aside or len(aside) > 2 * max(2, share * len(rows)):
            train, aside = partition.held_out([_key(row) for row in rows], share, seed)
        return [rows[n] for n in train], [rows[n] for n in aside]

    def hello(self, knobs: Mapping[str, Scalar]) -> Json:
        """Who this client is and what it holds, in counts and fingerprints; never a row."""
        self._rule()  # refuses before the first round what the engine cannot do
        base, rows = self.base(str(knobs.get("base", ""))), self.rows()
        examples = engine.examples(base, self.task, self.parts()[0], self.config, self.cache)
        return {
            "client": self.node.client,
            "clients": self.node.clients,
            "examples": len(examples.kept),
            "skipped": {**rows.skipped, **examples.skipped},
            "census": self.task.census(examples.kept),
            "data": rows.fingerprint,
            "base": base.fingerprint,
            "truth": rows.truth,
        }

    def train(self, order: Order) -> Update:
        """One local training: recall, load the adapter, train, keep what is private, send what is shared."""
        started, knobs = time.monotonic(), order.knobs
        rnd, rule = int(knobs["rnd"]), self._rule()
        memory = Memory(self.state_dir, str(knobs["run"]), self.node.client)
        private = memory.load(order.recall)
        base = self.base(str(knobs["base"]))
        rows, _ = self.parts(everyone=knobs.get("rows") == "all")
        examples = engine.examples(base, self.task, rows, self.config, self.cache)
        order = self._whole(base, order)
        before = rule.start(order, private)
        set_adapter(base, before, order.trees.get(MERGED))
        loaded = time.monotonic()
        rounds = self.config.run.num_server_rounds
        cfg = schedule.of_round(self.config.train, len(examples.kept), knobs, rounds)
        report = engine.train(
            base,
            self.task,
            examples.kept,
            cfg,
            seed=seed_for(self.config.run.seed, "batches", rnd, self.node.client),
            data_seed=self._data_seed,
            knobs=knobs,
            cache=self.cache,
            bend=Bend(
                rule.correct(order, private),
                rule.after_step(order, private, cfg.learning_rate),
                lambda name: rule.trains(name, rnd),
                rule.wants_gradients,
                private,
            ),
        )
        outcome = Outcome(before, get_adapter(base), report.steps, cfg.learning_rate, report.gradients)
        shared, kept = rule.finish(order, private, outcome)
        kept |= report.moments
        if kept:
            memory.save(rnd, kept, recalled=order.recall)
        seconds = {"seconds/load": loaded - started, "seconds/train": time.monotonic() - loaded}
        sums = {SUM + name: value for name, value in report.sums.items()}
        metrics = {**report.metrics, "learning_rate": cfg.learning_rate, **sums, **seconds}
        return Update(
            self.node.client,
            len(examples.kept),
            order.adapter,
            shared,
            metrics,
            tokens=sum(len(completion) for e in examples.kept for completion in e.completions),
            kept=bool(kept),
        )

    def evaluate(self, order: Order) -> Update:
        """Score the client's held-out rows with the adapter it would use itself; compare adapters where asked to."""
        knobs = order.knobs
        private = Memory(self.state_dir, str(knobs["run"]), self.node.client).load(order.recall)
        base = self.base(str(knobs["base"]))
        losses = self._compare(base, order) if "compare" in knobs else {}
        together = self._vote(base, order) if "vote" in knobs else {}
        order = self._whole(base, order)
        set_adapter(base, self._rule().start(order, private), order.trees.get(MERGED))
        metrics: Metrics = engine.evaluate(base, self.task, self._heldout(), self.config, self.cache)
        examples = int(metrics.pop("examples", 0))
        return Update(self.node.client, examples, order.adapter, {}, {**metrics, **losses, **together})

    def _heldout(self) -> list[Row]:
        heldout, most = self.rows().heldout, self.config.eval.max_rows
        return heldout[:most] if most else heldout

    def _compare(self, base: Base, order: Order) -> Metrics:
        """The task's loss under each adapter of the order on the rows set aside; empty for a client without such."""
        _, aside = self.parts()
        kept = engine.usable(base, self.task, aside, self.config, self.cache).kept
        if not kept:
            return {}
        task, knobs, seed = self.task, order.knobs, self._data_seed
        rows = task.prepare(kept, seed=seed, max_length=self.config.train.max_length)
        rng_for(seed, "race").shuffle(rows)
        refs = reference_logps(base, rows, self.cache) if task.needs_reference else {}
        names, z = str(knobs["compare"]).split(","), float(knobs.get("race", 0.0))
        trees = {name: self._whole(base, replace(order, adapter=name)).trees[name] for name in names}

        def score(name: str, start: int, stop: int) -> list[float]:
            set_adapter(base, trees[name])
            return row_losses(base, task, rows[start:stop], refs=refs, knobs=knobs)

        found = race(names, [weight(task, [row]) for row in rows], score, z=z)
        losses = {f"loss/{name}": loss for name, loss in found.losses.items()}
        return {**losses, "race/scored": found.scored} if z else losses

    def _vote(self, base: Base, order: Order) -> Metrics:
        """How often the soft vote of the order's adapters, with the weights it gives, picks the chosen answer of the
        client's held-out pairs; empty for a client without such."""
        examples = engine.heldout_of(base, self.task, self._heldout(), self.config, self.cache)
        if not examples:
            return {}
        total = torch.zeros(len(examples), dtype=torch.float64)
        for ballot in str(order.knobs["vote"]).split(","):
            name, weight = ballot.split(":")
            whole = self._whole(base, replace(order, adapter=name))
            set_adapter(base, whole.trees[name])
            z = margins(choice_batch(base, examples)).double().cpu()
            total += float(weight) * log_odds(z, self.task.reward_scale)
        return {"vote/accuracy": share_right(total)}

    @property
    def _data_seed(self) -> int:
        """Of what stays fixed for this client over all rounds."""
        return seed_for(self.config.run.seed, "pairs", self.node.client)

    def _whole(self, base: Base, order: Order) -> Order:
        """The order with the tensors that its adapter leaves out: they are at the common start."""
        tree = order.trees[order.adapter]
        if base.flat.parameters.keys() <= tree.keys():
            return order
        tree = {**initial_adapter(base, self.config.run.seed, order.adapter), **tree}
        return replace(order, trees={**order.trees, order.adapter: tree})

    def _rule(self) -> ClientRule:
        """What the strategy asks of this client; ConfigError for what the chosen engine cannot do."""
        rule = self.strategy.client_rule()
        if self.config.train.engine == "trl" and not rule.plain:
            raise ConfigError(
                f"strategy.name = {self.config.strategy_choice.name!r} changes the local steps, which "
                "train.engine = 'trl' cannot do; use train.engine = 'accord'"
            )
        return rule


def _key(value: Json) -> str:
    return json.dumps(value, sort_keys=True)


@lru_cache(maxsize=32)  # one actor of a simulation serves many clients; rows are a function of these
def _rows(config: Config, node: Node, everyone: bool, files: Json) -> ClientRows:
    task = config.task_choice.build()
    return client_rows(config, task, node.client, node.clients, path=node.data_path, everyone=everyone)
