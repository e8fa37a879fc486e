"""RLFT: what the selectors of a federation learned about answers becomes a policy, by DPO on the server.

Stages: generate, score, train. Each leaves its parts in the run's folder `rlft/` as it goes, so that a run that dies
continues where it was, with the same bytes. Wu et al. 2024, section 3 (arXiv:2407.03038); deviations: docs/rlft.md.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from core import store
from core.sections import Config, TrainConfig
from core.seeds import seed_for
from core.tree import Tree
from core.types import Json
from server_app.report import console
from server_app.rlft.judging import Judge, best_epoch, best_of_n, exhausted, signal, turned
from server_app.rlft.labelling import ALL, Labels, Target
from server_app.rlft.prompts import public_prompts
from tasks.base import Example, Row
from tasks.data.base import CONFIDENCE, Source
from tasks.data.clients import partition
from tasks.dpo import DPO
from tasks.forward.setup import load_base
from tasks.model.adapter import get_adapter, initial_adapter, save_adapter, set_adapter
from tasks.model.base import Base
from tasks.pretrained.loading import check_length
from tasks.scoring.evaluate import exact_kl
from tasks.scoring.generate import Talker
from tasks.scoring.jury import Jury
from tasks.tokens.cache import Cache
from tasks.tokens.encode import Encoder
from tasks.training import loop
from tasks.training.stepper import Bend

FREE = ("rlft.epochs", "rlft.patience", "rlft.policy")  # settings under which the parts stay what they are
POLICY = "policy"


@dataclass(frozen=True)
class Selectors:
    """What a federation leaves to label with, by name."""

    trees: Mapping[str, Tree]
    merged: Mapping[str, Tree]  # beside each
    groups: Mapping[str, Sequence[int]]  # the clients of each


@dataclass
class Rlft:
    config: Config
    run: Path
    base: Base  # of the selectors
    selectors: Selectors

    @property
    def folder(self) -> Path:
        return self.run / "rlft"

    @cached_property
    def policy(self) -> Base:
        """The base of the policies; without rlft.policy-model the very one of the selectors."""
        name = self.config.rlft.policy_model
        model = replace(self.config.model, name=name, revision="main")
        if not name:
            return self.base
        base = load_base(model, self.config.lora)
        check_length(base.causal, self.config.train.max_length, name)
        return base

    @cached_property
    def judge(self) -> Judge:
        return Judge.of(self.config, self._source)

    @cached_property
    def targets(self) -> list[Target]:
        names, groups = list(self.selectors.trees), self.selectors.groups
        everyone = tuple(sorted({client for group in groups.values() for client in group}))
        whole = [Target(ALL, tuple(range(len(names))), everyone)]
        alone = [Target(name, (i,), tuple(groups[name])) for i, name in enumerate(names)]
        return {"population": whole, "clusters": alone, "both": whole + alone}[self.config.rlft.policy]

    @cached_property
    def labels(self) -> Labels:
        every = public_prompts(self.config.rlft, self._source)
        seed = seed_for(self.config.run.seed, "rlft prompts")
        train, held = partition.held_out([a.prompt for a in every], self.config.rlft.heldout, seed)
        return Labels(
            self.folder,
            self.config.rlft,
            self.config.run.seed,
            [every[i] for i in train],
            [every[i] for i in held],
            self._jury(),
            base=self._talker(frozen=True),
            policy=self._talker(frozen=False),
        )

    # --- the pipeline -----------------------------------------------------------------

    def align(self) -> None:
        """Make every policy and leave it in the run; the policy's base then has the first one's best adapter."""
        self._begin()
        best = [self._align(target) for target in self.targets]
        set_adapter(self.policy, best[0])

    def _align(self, target: Target) -> Tree:
        """One policy, from the last epoch that stands."""
        folder, rlft = self.folder / target.name / "epochs", self.config.rlft
        saved = store.rounds(folder)
        if saved:
            trees, records = store.load(store.round_folder(folder, saved[-1]))
        else:
            trees = {POLICY: initial_adapter(self.policy, self.config.run.seed, f"{POLICY} {target.name}")}
            records = [{"epoch": 0, **self._scores(target, trees[POLICY])}]
            store.save(store.round_folder(folder, 0), trees, records)
        console.say_head(console.rlft_header(target.name))
        for record in records:
            console.say(console.rlft_line(record))
        while len(records) <= rlft.epochs and not exhausted(records, rlft.patience):
            trees, record = self._epoch(target, len(records), trees)
            records = [*records, record]
            store.save(store.round_folder(folder, record["epoch"]), trees, records)
            store.prune(folder, {best_epoch(records), record["epoch"]})
            console.say(console.rlft_line(record))
            self._note(target, records)
        best = store.load(store.round_folder(folder, best_epoch(records)))[0][POLICY]
        self._leave(target, records, best)
        return best

    def _epoch(self, target: Target, epoch: int, trees: Mapping[str, Tree]) -> tuple[dict[str, Tree], Json]:
        """The policy and its moments after one more epoch, and what is to be said about it."""
        rlft = self.config.rlft
        turn = (epoch - 1) // rlft.refresh_every if rlft.refresh_every else 0
        set_adapter(self.policy, trees[POLICY])
        rows, _ = self.labels.rows(target, turn)
        examples = self._examples(rows)
        set_adapter(self.policy, trees[POLICY])  # the labels may have put a selector in its place
        report = loop.train(
            self.policy,
            DPO(beta=rlft.beta),
            examples,
            self._settings(len(examples)),
            seed=seed_for(self.config.run.seed, "rlft", target.name, epoch),
            cache=Cache(self.folder / "cache"),
            bend=Bend(moments={name: tree for name, tree in trees.items() if name != POLICY}),
        )
        tree = get_adapter(self.policy)
        told = {n: report.metrics[n] for n in ("loss", "rewards/margins", "rewards/accuracies")}
        record = {"epoch": epoch, "turn": turn, "pairs": len(rows), **told, **self._scores(target, tree)}
        return {POLICY: tree, **report.moments}, record

    def _examples(self, rows: Sequence[Row]) -> list[Example]:
        """Pairs as DPO reads them. Each carries its own confidence: no row that drops out can move another's."""
        task, encoder, soft = DPO(), self._encoder(self.policy), self.config.rlft.labels == "soft"
        return [
            replace(example, confidence=row[CONFIDENCE] if soft else 1.0)
            for row in rows
            for example in task.examples([row], encoder)
        ]

    def _settings(self, rows: int) -> TrainConfig:
        """AdamW at a constant rate, whose moments go from epoch to epoch; the rest is as for clients."""
        rlft = self.config.rlft
        return replace(
            self.config.train,
            optimizer="adamw",
            optimizer_state="keep",
            learning_rate=rlft.learning_rate,
            local_steps=rlft.steps or math.ceil(rows / rlft.batch_size),
            row_sampling="shuffle",
            per_device_batch_size=rlft.batch_size,
            gradient_accumulation_steps=1,
        )

    def _scores(self, target: Target, tree: Tree) -> Json:
        """What the policy's own answers to held-out prompts are worth, and how far it is from the base on them."""
        prompts = [asked.prompt for asked in self.labels.held]
        references, talker = self.labels.references, self.labels.policy
        set_adapter(self.policy, tree)
        said = talker.generate(prompts)
        made = [talker.encoder.example(p, [answer]) for p, answer in zip(prompts, said, strict=True)]
        examples = [example for example in made if example]
        found = {
            "kl": exact_kl(self.policy, examples),
            "tokens": sum(len(e.completions[0]) for e in examples) / len(examples),
            **self.judge.score(talker),
            **self.judge.compare(prompts, said, references, target.clients),
        }
        return found | signal(self.labels.verdicts(target, said))

    # --- what it leaves ------------------------------------------------------------------

    def _note(self, target: Target, records: Sequence[Json], **more: Json) -> None:
        """rlft/record.json: what report and terminal say of the policies so far."""
        path = self.folder / "record.json"
        known = json.loads(path.read_text()) if path.is_file() else {"judge": self.judge.name, "policies": {}}
        known["policies"][target.name] = {
            "epochs": list(records),
            "best": best_epoch(records),
            "turned": turned(records),
            "labels": [self.labels.rows(target, turn)[1] for turn in _turns(records)],
            **more,
        }
        store.write_text(path, json.dumps(known, indent=1, sort_keys=True) + "\n")

    def _leave(self, target: Target, records: Sequence[Json], best: Tree) -> None:
        """The best of n, the preferences that the policy learned from, and the adapter of its best epoch."""
        rlft, labels, name = self.config.rlft, self.labels, target.name
        curve = best_of_n(
            labels.candidates(target), labels.jury(target).weights, rlft.vote, self.judge, target.clients
        )
        self._note(target, records, best_of_n=curve)
        rows = [row for turn in _turns(records) for row in labels.rows(target, turn)[0]]
        path = self.folder / ("preferences.jsonl" if name == ALL else f"preferences-{name}.jsonl")
        store.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        folder = self.run / POLICY if name == ALL else self.run / "policies" / name
        with store.writing(folder):
            save_adapter(self.policy, best, folder, base_name=rlft.policy_model or self.config.model.name)
        for line in console.rlft_outcome(records, best_epoch(records), turned(records), folder):
            console.say(line)

    # --- how it begins ---------------------------------------------------------------------

    def _begin(self) -> None:
        """Parts of other selectors, prompts or settings are no parts of this: they go."""
        stamp, note = self._stamp(), self.folder / "stamp"
        if self.folder.is_dir() and not (note.is_file() and note.read_text() == stamp):
            shutil.rmtree(self.folder)
        with store.writing(self.folder):
            self.folder.mkdir(exist_ok=True)
        if not note.is_file():
            store.write_text(note, stamp)
        labels, judge = self.labels, self.judge.name
        counts = len(labels.train), self.config.rlft.completions, len(labels.held)
        for line in console.rlft_plan(*counts, len(self.selectors.trees), judge):
            console.say(line)

    def _stamp(self) -> str:
        keys = [
            (k, v) for k, v in self.config.flat if k.startswith(("rlft.", "eval.pairs")) and k not in FREE
        ]
        asked = [[a.prompt, a.completion] for a in (*self.labels.train, *self.labels.held)]
        groups = {name: list(clients) for name, clients in self.selectors.groups.items()}
        digest = hashlib.blake2b(digest_size=16)
        facts = [self.base.fingerprint, self.policy.fingerprint, keys, asked, groups]
        digest.update(json.dumps(facts, sort_keys=True).encode())
        for name, tree in sorted(self.selectors.trees.items()):
            for key, tensor in sorted({**tree, **self.selectors.merged[name]}.items()):
                digest.update(f"{name} {key}".encode() + tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def _source(self) -> Source:
        return self.config.source_choice.build()

    def _jury(self) -> Jury:
        s, sizes = self.selectors, [len(self.selectors.groups[name]) for name in self.selectors.trees]
        weights = tuple(map(float, sizes)) if any(sizes) else (1.0,) * len(sizes)
        return Jury(
            self.base, self.config.task_choice.build(), self._encoder(self.base), s.trees, s.merged, weights
        )

    def _encoder(self, base: Base) -> Encoder:
        return Encoder(base.tokenizer, self.config.data.prompt_format, self.config.train.max_length)

    def _talker(self, *, frozen: bool) -> Talker:
        tokens = self.config.rlft.max_new_tokens
        return Talker(self.policy, self._encoder(self.policy), frozen=frozen, new_tokens=tokens)


def _turns(records: Sequence[Json]) -> list[int]:
    return sorted({record["turn"] for record in records[1:]})
