"""What a client does with an order: plain values in, plain values out; the Flower app is a thin face on it."""

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

from client_app import comparison, personal_model
from client_app.private_memory import Memory
from core.errors import BaseMismatch, ConfigError
from core.factors import MERGED
from core.sections import Config, TrainConfig
from core.seeds import seed_for
from core.tree import Tree
from core.types import Json, Metrics, Order, Scalar, Update
from strategies.base import Strategy
from strategies.clients.rule import FINISH, PERSONAL, ClientRule, Outcome
from strategies.rounds.metrics import SUM
from tasks.base import Example, Row, Task
from tasks.data.base import Planted
from tasks.data.clients import partition
from tasks.data.clients.rows import ClientRows, client_rows, forget_tables, stamp
from tasks.data.clients.split import answers_key, prompt_key, share_in, split_rows
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
from tasks.training.stepper import PLAIN, LocalHooks

MOST_ASIDE = 200  # rows


@dataclass(frozen=True)
class Node:
    """Who this client is: the facts of its node config."""

    client: int  # partition-id
    clients: int  # num-partitions
    data_path: str = ""  # its own private file; "": its share of the configured source
    state_dir: str = ""
    name: str = ""  # from the provisioning
    simulated: bool = False  # the node config says nothing but the two numbers above, as in a simulation

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
        texts = [str(node_config.get(key, "")) for key in ("data-path", "state-dir", "site-name")]
        return Node(client, clients, *texts, simulated=len(node_config) == 2)


@dataclass(frozen=True)
class Site:
    """One client: its configuration, its data, its disk."""

    config: Config
    node: Node

    @property
    def state_dir(self) -> Path:
        chosen = self.node.state_dir or self.config.client.state_dir or os.environ.get("ACCORD_HOME", "")
        try:
            return Path(chosen or "~/.accord").expanduser()
        except RuntimeError as error:
            raise ConfigError(
                "this user has no home folder for caches and private memory; set client.state-dir, or ACCORD_HOME"
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

    def base(self, named: str = "") -> Base:
        """The base model, loaded once per process; BaseMismatch if the server's is another."""
        base = load_base(self.config.model, self.config.lora, self.task.private_parts)
        check_length(base.causal, self.config.train.max_length, self.config.model.name)
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

        Rows of one prompt are on one side, unless the prompts say too little for that: where all ask the same, or the
        fewest rows that prompts leave to set aside are more than twice as many as wanted, answers are kept together.
        """
        rows, share = self.rows(everyone=everyone).train, self._rule().aside
        if not share:
            return rows, []
        share = min(share, MOST_ASIDE / len(rows))
        most = 2 * max(2, share * len(rows))
        seed = seed_for(self.config.run.seed, "aside", self.node.client)
        train, aside = partition.held_out([prompt_key(row["prompt"]) for row in rows], share, seed)
        if not aside or len(aside) > most:
            split = split_rows(rows, share, seed)
            train, aside = split.train, split.heldout
        if len(aside) > most:
            train, aside = partition.held_out([answers_key(row) for row in rows], share, seed)
        return [rows[n] for n in train], [rows[n] for n in aside]

    def counts(self) -> tuple[int, int, int]:
        """How many usable rows this client trains on, sets aside to compare adapters, and scores."""
        base, (train, aside) = self.base(), self.parts()
        kept = [
            engine.encode_rows(base, self.task, rows, self.config, self.cache).usable
            for rows in (train, aside)
        ]
        heldout = engine.heldout_of(base, self.task, self._heldout(), self.config, self.cache)
        return len(kept[0]), len(kept[1]), len(heldout)

    def drawn(self, order: Order, rows: int) -> int:
        """How many of its `rows` a client at most sees in the training that an order asks for."""
        cfg = schedule.of_round(self.config.train, rows, order.knobs, self.config.run.num_server_rounds)
        return min(rows, cfg.local_steps * cfg.per_device_batch_size * cfg.gradient_accumulation_steps)

    def hello(self, knobs: Mapping[str, Scalar]) -> Json:
        """Who this client is and what it holds, in counts and fingerprints; never a row."""
        self._rule()  # refuses before the first round what the engine cannot do
        base, rows = self.base(str(knobs.get("base", ""))), self.rows()
        train, aside = self.parts()
        examples = engine.encode_training_rows(base, self.task, train, self.config, self.cache)
        shared = share_in(aside, {prompt_key(row["prompt"]) for row in train})
        others = [
            engine.encode_rows(base, self.task, aside, self.config, self.cache),
            engine.encode_heldout_rows(base, self.task, self._heldout(), self.config, self.cache),
        ]
        skipped = Counter(rows.skipped)
        for part in (examples, *others):
            skipped.update(part.skipped)
        own_file = bool(self.node.data_path)  # whose columns and neighbours may be somebody's words
        columns = rows.columns.outside() if own_file else rows.columns
        return {
            "client": self.node.client,
            "clients": self.node.clients,
            **self._names(rows, knobs),
            "examples": len(examples.usable),
            "skipped": dict(skipped),
            "columns": {"used": list(columns.used), "ignored": list(columns.ignored)},
            "unread": [] if own_file else list(rows.unread),
            "remarks": dict(examples.remarks),
            "census": self.task.row_counts(examples.usable),
            "data": rows.fingerprint,
            "base": base.fingerprint,
            "truth": rows.truth,
            "heldout": rows.split.facts(),
            **({} if shared is None else {"aside": {"rows": len(aside), "shared": round(shared, 4)}}),
        }

    def _names(self, rows: ClientRows, knobs: Mapping[str, Scalar]) -> Json:
        """What this client is called, and which owners of rows are no client.

        Only in a simulation do names come from the data: file names and worker ids may identify people.
        """
        if self.node.simulated and knobs.get("simulation"):
            name, left_out = rows.owner, rows.left_out
        else:
            name = self.node.name
            left_out = {
                reason: {key: value for key, value in facts.items() if key != "names"}
                for reason, facts in rows.left_out.items()
            }
        return {key: value for key, value in (("name", name), ("left_out", left_out)) if value}

    def train(self, order: Order) -> Update:
        """One local training: recall, load the adapter, train, keep what is private, send what is shared."""
        started, knobs = time.monotonic(), order.knobs
        rnd, rule = int(knobs["rnd"]), self._rule()
        memory = Memory(self.state_dir, str(knobs["run"]), self.node.client)
        base = self.base(str(knobs["base"]))
        kept_before = memory.load(order.recall)
        private = self._with_parts(base, kept_before)
        rows, _ = self.parts(everyone=knobs.get("rows") == "all")
        examples = engine.encode_training_rows(base, self.task, rows, self.config, self.cache)
        order = self._whole(base, order)
        before = rule.start(order, private)
        loaded = time.monotonic()
        rounds = self.config.run.num_server_rounds
        cfg = schedule.of_round(self.config.train, len(examples.usable), knobs, rounds)
        bend = LocalHooks(
            correct=rule.correct(order, private),
            after_step=rule.after_step(order, private, cfg.learning_rate),
            trains=lambda name: rule.learns(name, rnd),
            private_steps=rule.opening if rnd > 1 and not kept_before else 0,
            wants_gradients=rule.wants_gradients,
            moments=private,
        )
        report = self._fit(base, order, before, examples.usable, cfg, bend)
        after = {**get_adapter(base), **get_private(base)}
        outcome = Outcome(before, after, report.steps, cfg.learning_rate, report.gradients)
        shared, kept = rule.finish(order, private, outcome)
        kept |= report.moments
        if rule.pull:
            bend = LocalHooks(correct=rule.pull(order), trains=bend.trains)
            self._fit(base, order, private.get(PERSONAL, before), examples.usable, cfg, bend, "personal")
            kept[PERSONAL] = get_adapter(base)
        if kept and processes.is_leader():
            memory.save(rnd, kept, recalled=order.recall)
        seconds = {"seconds/load": loaded - started, "seconds/train": time.monotonic() - loaded}
        sums = {SUM + name: value for name, value in report.sums.items()}
        metrics = {**report.metrics, "learning_rate": cfg.learning_rate, **sums, **seconds}
        return Update(
            self.node.client,
            len(examples.usable),
            order.adapter,
            shared,
            metrics,
            tokens=sum(len(completion) for e in examples.usable for completion in e.completions),
            kept=bool(kept),
        )

    def evaluate(self, order: Order) -> Update:
        """Score the client's held-out rows with the adapter it would use itself; compare adapters where asked to.

        After the last round a client whose model is its own writes it down (client_app/personal_model.py).
        """
        knobs = order.knobs
        kept = Memory(self.state_dir, str(knobs["run"]), self.node.client).load(order.recall)
        base = self.base(str(knobs["base"]))
        beside: Metrics = {}
        if "compare" in knobs:
            trees = self._adapters(base, order, str(knobs["compare"]).split(","))
            beside |= comparison.losses(
                base, self.task, self.parts()[1], trees, knobs, self.config, self.cache, seed=self._data_seed
            )
        if "vote" in knobs:
            weights = comparison.ballots(str(knobs["vote"]))
            trees = self._adapters(base, order, weights)
            beside |= comparison.vote(
                base, self.task, self._heldout(), trees, weights, self.config, self.cache
            )
        order = self._whole(base, order)
        tree, merged = self._rule().scored(order, self._with_parts(base, kept)), order.trees.get(MERGED)
        finish = int(knobs.get(FINISH, 0))
        if finish:
            tree = self._finished(base, order, tree, finish)
        set_adapter(base, tree, merged)
        metrics: Metrics = engine.evaluate(base, self.task, self._heldout(), self.config, self.cache)
        metrics |= self._truth(base, int(knobs["rnd"]))
        last = int(knobs["rnd"]) == self.config.run.num_server_rounds
        if last and (finish or kept.keys() & {"own", PERSONAL}) and processes.is_leader():
            folder = personal_model.folder(self.state_dir, str(knobs["run"]), self.node.client)
            personal_model.export(base, tree, merged, folder, self.config, metrics.get("combined/lambda"))
        examples = int(metrics.pop("examples", 0))
        return Update(self.node.client, examples, order.adapter, {}, {**metrics, **beside})

    def _truth(self, base: Base, rnd: int) -> Metrics:
        """What the model's own answers are worth before and after a run on a source that knows the truth."""
        source = self.config.source_choice.build()
        planted = isinstance(source, Planted) and not self.node.data_path and self.task.reads == "logps"
        if not planted or rnd not in (0, self.config.run.num_server_rounds):
            return {}
        data, kind = self.config.data, self.rows().truth
        typed = data.partitioner == "natural" and not (data.flipped_clients and (kind or 0) % 2)
        encoder = Encoder(base.tokenizer, data.prompt_format, self.config.train.max_length)
        client = self.node.client if typed else None
        return truth.grade_model(base, encoder, source, seed=self.config.run.seed, client=client)

    def _heldout(self) -> list[Row]:
        heldout, most = self.rows().heldout, self.config.eval.max_rows
        return heldout[:most] if most else heldout

    def _fit(
        self,
        base: Base,
        order: Order,
        start: Tree,
        kept: Sequence[Example],
        cfg: TrainConfig,
        bend: LocalHooks,
        purpose: str = "batches",
    ) -> TrainReport:
        """Train from `start`; `purpose` seeds the batches. The result is in the base."""
        set_adapter(base, start, order.trees.get(MERGED))
        return engine.train(
            base,
            self.task,
            kept,
            cfg,
            seed=seed_for(self.config.run.seed, purpose, int(order.knobs["rnd"]), self.node.client),
            data_seed=self._data_seed,
            knobs=order.knobs,
            cache=self.cache,
            hooks=bend,
        )

    def _finished(self, base: Base, order: Order, tree: Tree, steps: int) -> Tree:
        """The client's own model after so many more plain steps on its own rows."""
        examples = engine.encode_training_rows(base, self.task, self.parts()[0], self.config, self.cache)
        rounds = self.config.run.num_server_rounds
        cfg = schedule.of_round(self.config.train, len(examples.usable), order.knobs, rounds)
        cfg = replace(cfg, local_steps=steps, optimizer_state="reset")
        self._fit(base, order, tree, examples.usable, cfg, PLAIN, FINISH)
        return {**get_adapter(base), **get_private(base)}

    def _with_parts(self, base: Base, memory: dict[str, Tree]) -> dict[str, Tree]:
        """The client's memory; private parts that it does not hold yet are at their start."""
        own = memory.get("own", {})
        if base.private_parts.tensors.keys() <= own.keys():
            return memory
        return {**memory, "own": {**base.private_parts.start(self.config.run.seed, self.node.client), **own}}

    def _adapters(self, base: Base, order: Order, names: Iterable[str]) -> dict[str, Tree]:
        """Several adapters of an order, each whole."""
        return {name: self._whole(base, replace(order, adapter=name)).trees[name] for name in names}

    @property
    def _data_seed(self) -> int:
        """Of what stays fixed for this client over all rounds."""
        return seed_for(self.config.run.seed, "pairs", self.node.client)

    def _whole(self, base: Base, order: Order) -> Order:
        """The order with the tensors that its adapter leaves out: they are at the common start."""
        tree = order.trees[order.adapter]
        if base.adapter.keys() <= tree.keys():
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


@lru_cache(maxsize=32)  # one actor of a simulation serves many clients; rows are a function of these
def _rows(config: Config, node: Node, everyone: bool, files: Json) -> ClientRows:
    task = config.task_choice.build()
    return client_rows(config, task, node.client, node.clients, path=node.data_path, everyone=everyone)


def forget_rows() -> None:
    """Let go of the rows that this process has read."""
    _rows.cache_clear()
    forget_tables()
