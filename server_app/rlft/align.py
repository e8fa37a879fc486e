"""RLFT: train a policy on the server by DPO on preferences that the federation's selectors label.

Stages: generate, score, train. Each stage writes its results to `rlft/` in the run folder as it goes, so that a resumed
run continues where it stopped and gives the same bytes. Wu et al. 2024, section 3 (arXiv:2407.03038); deviations:
docs/rlft.md.
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
from server_app.rlft.judging import Judge, best_epoch, best_of_n, hacking_epoch, is_out_of_patience, signal
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
from tasks.scoring.ensemble import SelectorEnsemble
from tasks.scoring.evaluate import exact_kl
from tasks.scoring.generate import TextGenerator
from tasks.tokens.cache import Cache
from tasks.tokens.encode import Encoder
from tasks.training import loop
from tasks.training.stepper import LocalHooks

UNSTAMPED = ("rlft.epochs", "rlft.patience", "rlft.policy")  # keys that do not change the stages' results
POLICY = "policy"


@dataclass(frozen=True)
class Selectors:
    """The selectors that a federation trained, by name."""

    trees: Mapping[str, Tree]
    merged: Mapping[str, Tree]  # merged factors of each
    groups: Mapping[str, Sequence[int]]  # clients of each


@dataclass
class Rlft:
    """The RLFT pipeline of one run."""

    config: Config
    run: Path
    base: Base  # of the selectors
    selectors: Selectors

    @property
    def folder(self) -> Path:
        return self.run / "rlft"

    @cached_property
    def policy(self) -> Base:
        """The base model of the policies: rlft.policy-model, or else the selectors' base (the same object)."""
        name = self.config.rlft.policy_model
        model = replace(self.config.model, name=name, revision="main")
        if not name:
            return self.base
        base = load_base(model, self.config.lora)
        check_length(base.causal, self.config.train.max_length, name)
        return base

    @cached_property
    def judge(self) -> Judge:
        """The independent judge that rlft.judge names."""
        return Judge.of(self.config, self._source)

    @cached_property
    def targets(self) -> list[Target]:
        """The policies to train, as rlft.policy says: of the population, of each group, or both."""
        names, groups = list(self.selectors.trees), self.selectors.groups
        everyone = tuple(sorted({client for group in groups.values() for client in group}))
        population = [Target(ALL, tuple(range(len(names))), everyone)]
        clusters = [Target(name, (i,), tuple(groups[name])) for i, name in enumerate(names)]
        return {"population": population, "clusters": clusters, "both": population + clusters}[
            self.config.rlft.policy
        ]

    @cached_property
    def labels(self) -> Labels:
        """Answers and labels for the prompts, split into training and held-out ones by the run's seed."""
        prompts = public_prompts(self.config.rlft, self._source)
        seed = seed_for(self.config.run.seed, "rlft prompts")
        train, held_out = partition.held_out([a.prompt for a in prompts], self.config.rlft.heldout, seed)
        return Labels(
            self.folder,
            self.config.rlft,
            self.config.run.seed,
            [prompts[i] for i in train],
            [prompts[i] for i in held_out],
            self._ensemble(),
            base=self._generator(frozen=True),
            policy=self._generator(frozen=False),
        )

    # --- the pipeline -----------------------------------------------------------------

    def align(self) -> None:
        """Train and save every policy; afterwards `policy` has the adapter of the first target's best epoch."""
        self._prepare_folder()
        best = [self._align_target(target) for target in self.targets]
        set_adapter(self.policy, best[0])

    def _align_target(self, target: Target) -> Tree:
        """Train one policy, from its last saved epoch on; returns the adapter of the best epoch."""
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
        while len(records) <= rlft.epochs and not is_out_of_patience(records, rlft.patience):
            trees, record = self._epoch(target, len(records), trees)
            records = [*records, record]
            store.save(store.round_folder(folder, record["epoch"]), trees, records)
            store.prune(folder, {best_epoch(records), record["epoch"]})
            console.say(console.rlft_line(record))
            self._write_record(target, records)
        best = store.load(store.round_folder(folder, best_epoch(records)))[0][POLICY]
        self._write_policy(target, records, best)
        return best

    def _epoch(self, target: Target, epoch: int, trees: Mapping[str, Tree]) -> tuple[dict[str, Tree], Json]:
        """Train one more epoch; returns the policy with Adam's moments, and the record of the epoch."""
        rlft = self.config.rlft
        turn = (epoch - 1) // rlft.refresh_every if rlft.refresh_every else 0
        set_adapter(self.policy, trees[POLICY])
        rows, _ = self.labels.rows(target, turn)
        examples = self._examples(rows)
        set_adapter(self.policy, trees[POLICY])  # labelling may have loaded a selector's adapter
        report = loop.train(
            self.policy,
            DPO(beta=rlft.beta),
            examples,
            self._settings(len(examples)),
            seed=seed_for(self.config.run.seed, "rlft", target.name, epoch),
            cache=Cache(self.folder / "cache"),
            hooks=LocalHooks(moments={name: tree for name, tree in trees.items() if name != POLICY}),
        )
        tree = get_adapter(self.policy)
        metrics = {n: report.metrics[n] for n in ("loss", "rewards/margins", "rewards/accuracies")}
        record = {"epoch": epoch, "turn": turn, "pairs": len(rows), **metrics, **self._scores(target, tree)}
        return {POLICY: tree, **report.moments}, record

    def _examples(self, rows: Sequence[Row]) -> list[Example]:
        """Tokenised pairs for DPO. Each carries its own confidence, so that a dropped row cannot shift the others'."""
        task, encoder, is_soft = DPO(), self._encoder(self.policy), self.config.rlft.labels == "soft"
        return [
            replace(example, confidence=row[CONFIDENCE] if is_soft else 1.0)
            for row in rows
            for example in task.examples([row], encoder)
        ]

    def _settings(self, rows: int) -> TrainConfig:
        """Training settings: AdamW at a constant rate with moments kept between epochs; the rest as for clients."""
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
        """Evaluate the policy's greedy answers to held-out prompts: judgement, signal, length and KL to the base."""
        prompts = [public_prompt.prompt for public_prompt in self.labels.held_out]
        references, generator = self.labels.references, self.labels.policy
        set_adapter(self.policy, tree)
        answers = generator.generate(prompts)
        encoded = [generator.encoder.example(p, [answer]) for p, answer in zip(prompts, answers, strict=True)]
        examples = [example for example in encoded if example]
        scores = {
            "kl": exact_kl(self.policy, examples),
            "tokens": sum(len(e.completions[0]) for e in examples) / len(examples),
            **self.judge.score(generator),
            **self.judge.compare(prompts, answers, references, target.clients),
        }
        return scores | signal(self.labels.verdicts(target, answers))

    # --- results ------------------------------------------------------------------

    def _write_record(self, target: Target, records: Sequence[Json], **extra: Json) -> None:
        """Write rlft/record.json: the policies so far, for report and terminal. extra: more entries of the target."""
        path = self.folder / "record.json"
        record = (
            json.loads(path.read_text()) if path.is_file() else {"judge": self.judge.name, "policies": {}}
        )
        record["policies"][target.name] = {
            "epochs": list(records),
            "best": best_epoch(records),
            "turned": hacking_epoch(records),
            "labels": [self.labels.rows(target, turn)[1] for turn in _turns(records)],
            **extra,
        }
        store.write_text(path, json.dumps(record, indent=1, sort_keys=True) + "\n")

    def _write_policy(self, target: Target, records: Sequence[Json], best: Tree) -> None:
        """Write the best-of-n curve, the pairs that the policy was trained on, and the adapter of its best epoch."""
        rlft, labels, name = self.config.rlft, self.labels, target.name
        curve = best_of_n(
            labels.candidates(target), labels.ensemble(target).weights, rlft.vote, self.judge, target.clients
        )
        self._write_record(target, records, best_of_n=curve)
        rows = [row for turn in _turns(records) for row in labels.rows(target, turn)[0]]
        path = self.folder / ("preferences.jsonl" if name == ALL else f"preferences-{name}.jsonl")
        store.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        folder = self.run / POLICY if name == ALL else self.run / "policies" / name
        with store.writing(folder):
            save_adapter(self.policy, best, folder, base_name=rlft.policy_model or self.config.model.name)
        for line in console.rlft_outcome(records, best_epoch(records), hacking_epoch(records), folder):
            console.say(line)

    # --- set-up ---------------------------------------------------------------------

    def _prepare_folder(self) -> None:
        """Delete results of other selectors, prompts or settings, create the folder, and print the plan."""
        stamp, stamp_file = self._stamp(), self.folder / "stamp"
        if self.folder.is_dir() and not (stamp_file.is_file() and stamp_file.read_text() == stamp):
            shutil.rmtree(self.folder)
        with store.writing(self.folder):
            self.folder.mkdir(exist_ok=True)
        if not stamp_file.is_file():
            store.write_text(stamp_file, stamp)
        labels, judge = self.labels, self.judge.name
        counts = len(labels.train), self.config.rlft.completions, len(labels.held_out)
        for line in console.rlft_plan(*counts, len(self.selectors.trees), judge):
            console.say(line)

    def _stamp(self) -> str:
        """Digest of everything that the results in the folder depend on."""
        keys = [
            (k, v)
            for k, v in self.config.flat
            if k.startswith(("rlft.", "eval.pairs")) and k not in UNSTAMPED
        ]
        prompts = [[a.prompt, a.completion] for a in (*self.labels.train, *self.labels.held_out)]
        groups = {name: list(clients) for name, clients in self.selectors.groups.items()}
        digest = hashlib.blake2b(digest_size=16)
        facts = [self.base.fingerprint, self.policy.fingerprint, keys, prompts, groups]
        digest.update(json.dumps(facts, sort_keys=True).encode())
        for name, tree in sorted(self.selectors.trees.items()):
            for key, tensor in sorted({**tree, **self.selectors.merged[name]}.items()):
                digest.update(f"{name} {key}".encode() + tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def _source(self) -> Source:
        return self.config.source_choice.build()

    def _ensemble(self) -> SelectorEnsemble:
        selectors, sizes = self.selectors, [len(self.selectors.groups[name]) for name in self.selectors.trees]
        weights = tuple(map(float, sizes)) if any(sizes) else (1.0,) * len(sizes)
        return SelectorEnsemble(
            self.base,
            self.config.task_choice.build(),
            self._encoder(self.base),
            selectors.trees,
            selectors.merged,
            weights,
        )

    def _encoder(self, base: Base) -> Encoder:
        return Encoder(base.tokenizer, self.config.data.prompt_format, self.config.train.max_length)

    def _generator(self, *, frozen: bool) -> TextGenerator:
        tokens = self.config.rlft.max_new_tokens
        return TextGenerator(self.policy, self._encoder(self.policy), frozen=frozen, new_tokens=tokens)


def _turns(records: Sequence[Json]) -> list[int]:
    """Turns of the trained epochs; epoch 0 has none."""
    return sorted({record["turn"] for record in records[1:]})
