"""The ServerApp: open the run folder, federate, then write adapter, report and model card."""

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import HttpGrid

from core import flower_patches, store
from core.config import parse
from core.errors import AccordError, CheckpointError
from core.factors import MERGED
from core.sections import Config
from core.types import Json, ServerState
from server_app.provenance import provenance
from server_app.report import console
from server_app.report.card import write_card
from server_app.report.clients import count_clients, facts_of
from server_app.report.columns import column_lines
from server_app.report.documents import write_report
from server_app.report.reading import names_of
from server_app.report.summary import resume_line
from server_app.rlft.align import Rlft, Selectors
from server_app.run_folder import RunFolder
from server_app.server_files import check_files, eval_prompts
from strategies.base import Strategy
from strategies.rounds.session import RunContext
from tasks.base import Task
from tasks.forward.setup import load_base
from tasks.model.adapter import initial_adapter, is_untouched, save_adapter, set_adapter
from tasks.model.base import Base
from tasks.pretrained.loading import check_length
from tasks.scoring.generate import TextGenerator
from tasks.tokens.encode import Encoder

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Entry point of the ServerApp. An AccordError is reported in one line, then raised again."""
    run = None
    try:
        config = parse(context.run_config)
        console.set_format(config.run.log_format)
        flower_patches.apply(flower_patches.SERVERAPP)
        run = Run.open(config)
        run.execute(grid)
    except AccordError as error:
        console.say(f"accord: {type(error).__name__}: {error}", level="ERROR")
        if run and store.rounds(run.folder.checkpoints):
            console.say(f"accord: {resume_line(run.folder.path)}")
        raise


@dataclass
class Run:
    """One run on the server, from its folder to its report."""

    config: Config
    folder: RunFolder
    base: Base
    strategy: Strategy
    task: Task
    records: list[Json] = field(default_factory=list)

    @staticmethod
    def open(config: Config) -> "Run":
        """Create a new run, or reopen the one that run.resume names."""
        check_files(config)
        folder = RunFolder.reopen(config) if config.run.resume else RunFolder.create(config)
        folder.hold()
        try:
            base = load_base(config.model, config.lora)
            check_length(base.causal, config.train.max_length, config.model.name)
            folder.check_base(config.model.name, base.fingerprint)
        except BaseException:
            if not config.run.resume:
                folder.discard_without_round()
            raise
        return Run(config, folder, base, config.build_strategy(), config.task_choice.build())

    def execute(self, grid: Grid) -> None:
        """Run all rounds that are left, then write the results; on failure, record the reason in the manifest."""
        manifest, simulation = self.folder.manifest(), not isinstance(grid, HttpGrid)
        self.folder.write_manifest(
            **(provenance(self.config) if not manifest else {"rounds": self.config.run.num_server_rounds}),
            base={"name": self.config.model.name, "fingerprint": self.base.fingerprint},
            federation="simulation" if simulation else "deployment",
            status="running",
        )
        state = self.folder.load_state()
        if self.config.run.resume:
            self.folder.write_manifest(
                asked=self.folder.plan_history(self.config, state.round if state else 0)
            )
            self.folder.write_config(self.config)
        self.records = self.folder.metrics()
        if state is None:
            first = initial_adapter(self.base, self.config.run.seed)
            state = self.strategy.init({"global": first}, self.config.run.seed)
        else:
            console.say(f"resuming {self.folder.name} after round {state.round}")
        rounds = self.config.run.num_server_rounds
        try:
            if state.round < rounds or not self.records:
                with self.folder.spool() as spool:
                    context = self._context(simulation=simulation, spool=spool)
                    state = self.strategy.run(grid, context, state, rounds)
            self._finish(state)
        except BaseException as error:
            reason = str(error) if isinstance(error, AccordError) else type(error).__name__
            # a full disk that stopped the run may refuse these writes as well
            with contextlib.suppress(CheckpointError):
                if self.config.run.resume or not self.folder.discard_without_round():
                    self._write_results(f"failed: {reason}")
            raise

    def _context(self, *, simulation: bool, spool: Path) -> RunContext:
        config = self.config
        return RunContext(
            run=self.folder.name,
            base=self.base.fingerprint,
            simulation=simulation,
            min_available_nodes=config.strategy.min_available_nodes,
            fraction_train=config.strategy.fraction_train,
            sampling=config.strategy.sampling,
            fault=config.fault,
            eval_every=config.eval.every,
            spool=spool,
            task_order_options=self.task.order_options,
            task_options=self.task.pooled_options,
            on_hello=self._on_hello,
            on_round=self._on_round,
            say=console.say,
            base_scored=bool(self.records),
            votes=self.task.reads == "choices",
        )

    def _on_hello(self, hellos: Mapping[int, Json]) -> None:
        """Before the first round: write the clients to manifest and config.toml, and print the plan."""
        self.folder.write_manifest(**facts_of(hellos))
        manifest = self.folder.manifest()
        self.folder.write_config(self.config, clients=count_clients(hellos))
        lines = console.plan_lines(dict(self.config.flat), manifest, self.folder.path)
        if self.config.source_choice.name != "toy":
            lines += column_lines(hellos.values())
        for line in lines:
            console.say(line)
        of_template = self._encoder(self.base).notes if self.task.reads == "logps" else []
        for line in console.template_notes(of_template, hellos.values()):
            console.say(line)
        console.say_head(console.header(names_of(manifest)))

    def _on_round(self, state: ServerState, record: Json) -> None:
        """Commit a round to disk, then print it."""
        self.folder.commit(state, record)
        self.records.append(record)
        names = names_of(self.folder.manifest())
        console.say_round(self.records, self.config.run.num_server_rounds, names)

    def _finish(self, state: ServerState) -> None:
        """After the last round: save adapters, generate answers, run benchmarks and RLFT, and write the report."""
        adapters = self.strategy.final(state)
        merged = {name: state.memory.get(f"{name}.{MERGED}", {}) for name in adapters}
        main = next(iter(adapters))
        folders = {self.folder.path / "adapter": main}
        if len(adapters) > 1:
            folders |= {self.folder.path / "adapters" / name: name for name in adapters}
        for folder, name in folders.items():
            base_name = self.config.model.name
            with store.writing(folder):
                save_adapter(self.base, adapters[name], folder, base_name=base_name, merged=merged[name])
        set_adapter(self.base, adapters[main], merged[main])
        # selectors and reward models do not learn to generate answers
        if not is_untouched(self.base) and self.task.reads == "logps":
            self._write_json("answers.json", self._answers(self.base))
        if self.config.benchmarks:
            self._write_json("benchmarks.json", self._benchmarks())
        if self.config.rlft.epochs:
            rlft = Rlft(
                self.config,
                self.folder.path,
                self.base,
                Selectors(adapters, merged, self._groups(state, adapters)),
            )
            rlft.align()
            self._write_json("answers.json", self._answers(rlft.policy))
        self._write_results("finished")
        console.say_end(self.folder.path)

    def _groups(self, state: ServerState, names: Iterable[str]) -> dict[str, list[int]]:
        """The clients of each adapter. A client without a group belongs to the only adapter, or to none of several."""
        clients, route = map(int, self.folder.manifest()["clients"]), state.facts.get("route", {})
        first, *rest = names
        groups: dict[str, list[int]] = {name: [] for name in (first, *rest)}
        for client in sorted(clients):
            name = route.get(str(client), "" if rest else first)
            if name:
                groups[name].append(client)
        return groups

    def _write_results(self, status: str) -> None:
        """Write status, report and model card at the end of a run, finished or failed."""
        self.folder.write_manifest(status=status)
        with store.writing(self.folder.path / "report.html"):
            write_report(self.folder.path)
            write_card(self.folder.path)

    def _encoder(self, base: Base) -> Encoder:
        return Encoder(base.tokenizer, self.config.data.prompt_format, self.config.train.max_length)

    def _generators(self, base: Base) -> dict[str, TextGenerator]:
        encoder = self._encoder(base)
        return {"before": TextGenerator(base, encoder, frozen=True), "after": TextGenerator(base, encoder)}

    def _answers(self, base: Base) -> list[Json]:
        prompts = self._prompts()
        answers = {when: generator.generate(prompts) for when, generator in self._generators(base).items()}
        return [{"prompt": p, **{when: answers[when][i] for when in answers}} for i, p in enumerate(prompts)]

    def _benchmarks(self) -> Json:
        """Results of each benchmark of eval.benchmarks on the base model and on the trained model."""
        generators = self._generators(self.base)
        return {
            choice.name: {when: choice.build().run(generator) for when, generator in generators.items()}
            for choice in self.config.benchmarks
        }

    def _write_json(self, name: str, document: Json) -> None:
        store.write_text(self.folder.path / name, json.dumps(document, indent=1, ensure_ascii=False) + "\n")

    def _prompts(self) -> list[str]:
        """Public prompts to answer before and after training: those of eval.prompts, else the data source's own."""
        source = self.config.source_choice.build()
        return eval_prompts(self.config) or source.prompts()
