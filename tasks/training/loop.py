"""The one training loop: draw, pack, forward, loss, backward, correct, clip, step."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from torch import Tensor

from core.errors import DataError
from core.factors import is_private
from core.sections import TrainConfig
from core.seeds import rng_for, seed_for
from core.tree import Tree
from core.types import Metrics, Scalar
from tasks.base import Batch, Example, Stage, Task
from tasks.forward import processes
from tasks.forward.batches import by_budget, draw, subset
from tasks.forward.logprobs import choice_logits, completion_scores, with_strangers
from tasks.forward.modes import training
from tasks.forward.reference import forks_of, reference_logps, tokens_of
from tasks.model.adapter import is_untouched
from tasks.model.base import Base
from tasks.scoring.evaluate import TOKENS, evaluate
from tasks.tokens.cache import Cache
from tasks.tokens.encode import key_of
from tasks.training.stepper import PLAIN, Bend, Stepper

__all__ = ["TrainReport", "evaluate", "local_batches", "train"]


@dataclass(frozen=True)
class TrainReport:
    steps: int  # optimiser steps
    rows: int  # rows seen, with repetition
    metrics: Metrics  # means over batches, under TRL's names; a metric without data is absent
    sums: Metrics = field(default_factory=dict)  # additive over clients, for Task.pooled_settings
    gradients: Tree | None = field(default=None, compare=False)  # mean over the steps, if Bend wants it
    moments: dict[str, Tree] = field(default_factory=dict, compare=False)  # Adam's, if they are kept
    seconds: float = 0.0


def train(
    base: Base,
    task: Task,
    examples: Sequence[Example],
    cfg: TrainConfig,
    *,
    seed: int,
    data_seed: int = 0,
    knobs: Mapping[str, Scalar] | None = None,
    cache: Cache | None = None,
    bend: Bend = PLAIN,
    steps: int | None = None,
) -> TrainReport:
    """Train the base's current adapter in place at a constant rate.

    seed: of the batches and of dropout (run, round, client). data_seed: of what stays fixed for a client over
    all rounds (KTO's mismatched pairs). knobs: from Task.pooled_settings. bend: what the algorithm and the client's
    memory change. steps: instead of cfg.local_steps, without the opening ones.
    The same arguments give the same bytes on the same machine.
    Raises DataError without examples.
    """
    started = time.perf_counter()
    if not examples:
        raise DataError("a client without usable rows cannot train")
    stages = (Stage(bend.opening, is_private), *task.stages(steps or cfg.local_steps))
    stages = [stage for stage in stages if stage.steps]
    steps = sum(stage.steps for stage in stages)
    examples = task.prepare(examples, seed=data_seed, max_length=cfg.max_length)
    batches = local_batches(len(examples), cfg, steps=steps, seed=seed, rnd=int((knobs or {}).get("rnd", 1)))
    refs: Mapping[str, tuple[float, ...]] = {}
    if task.needs_reference:
        drawn = sorted({row for micro in batches for batch in micro for row in batch})
        refs = reference_logps(base, [examples[row] for row in drawn], cache or Cache(None))
    look = _Look(base, task, refs, dict(knobs or {}))
    history: list[Metrics] = []
    gradients: Tree = {}
    moments: dict[str, Tree] = {}
    queue = iter(batches)
    for stage in stages:
        now = replace(bend, trains=_both(bend.trains, stage.trains), moments={**bend.moments, **moments})
        masks = seed_for(seed, "dropout", *([processes.rank()] if processes.rank() else []))
        dropout = {"dropout": not task.needs_reference, "seed": masks}
        stepper = Stepper(base.flat, cfg, now, task.rate)
        with training(base, **dropout, trains=now.trains):
            for micro in islice(queue, stage.steps):
                history += look.step([[examples[row] for row in batch] for batch in micro], stepper)
        gradients |= stepper.mean_gradient() or {}
        moments |= stepper.moments()
    rows = sum(len(batch) for micro in batches for batch in micro)
    history = [metrics for each in processes.gather(history) for metrics in each]
    sums = _sums(processes.gather(look.sums))
    return TrainReport(
        steps, rows, _means(history), sums, gradients or None, moments, time.perf_counter() - started
    )


def row_losses(
    base: Base,
    task: Task,
    examples: Sequence[Example],
    *,
    refs: Mapping[str, tuple[float, ...]],
    knobs: Mapping[str, Scalar],
) -> list[float]:
    """The task's loss of each of the prepared examples under the base's current adapter.

    What is over several rows (KTO's reference point) is over the rows that are scored at once. By `weight` their
    mean is the loss of all.
    """
    look = _Look(base, task, refs, knobs)
    losses: list[float] = []
    base.model.eval()
    with torch.no_grad():
        for group in by_budget(examples, tokens_of, TOKENS):
            batch = look.batch(group)
            for one in _one_by_one(batch):
                loss, metrics = task.loss(one)
                losses.append(metrics.get("loss", float(loss)))  # what the task itself reports goes first
            task.loss(batch)  # moves what the task carries on to the next
    return losses


def local_batches(
    rows: int, cfg: TrainConfig, *, steps: int, seed: int, rnd: int = 1
) -> list[list[list[int]]]:
    """Row numbers of every micro-batch of every step; `rnd` chooses them under train.row-sampling = openfedllm."""
    size, accumulate = cfg.per_device_batch_size, cfg.gradient_accumulation_steps
    most = size * accumulate * steps
    pool = subset(rows, most, rnd) if cfg.row_sampling == "openfedllm" else range(rows)
    drawn = draw(len(pool), size, steps * accumulate, rng_for(seed, "rows"))
    flat = [[pool[place] for place in batch] for batch in drawn]
    return [flat[i : i + accumulate] for i in range(0, len(flat), accumulate)]


class _Look:
    """What a batch looks like to the task's loss, at the model's current weights."""

    def __init__(
        self, base: Base, task: Task, refs: Mapping[str, tuple[float, ...]], knobs: Mapping[str, Scalar]
    ) -> None:
        self.base, self.task, self.refs, self.knobs = base, task, refs, knobs
        self.running: dict[str, float] = {}
        self.sums: dict[str, float] = {}
        self.untouched = is_untouched(base)

    def step(self, batches: Sequence[Sequence[Example]], stepper: Stepper) -> list[Metrics]:
        """One optimiser step on the micro-batches; the metrics of each, and of the step."""
        self.base.flat.zero_grad()
        out: list[Metrics] = []
        whole = sum(weight(self.task, batch) for batch in batches)
        for batch in shared(self.task, batches):
            loss, metrics = self.loss(batch)
            (loss * (weight(self.task, batch) / whole)).backward()
            out.append({"loss": float(loss.detach()), **metrics})
        processes.add(self.base.flat.gradients)
        out.append({"grad_norm": stepper.step()})
        self.untouched = False
        return out

    def loss(self, examples: Sequence[Example]) -> tuple[Tensor, Metrics]:
        return self.task.loss(self.batch(examples))

    def batch(self, examples: Sequence[Example]) -> Batch:
        forks = [fork for example in examples for fork in forks_of(example)]
        strangers = [example.mismatched for example in examples]
        kl_logps = hits = explicit = None
        if self.task.reads == "choices":
            logps = choice_logits(self.base, forks).flatten()
        elif any(strangers):
            logps, kl_logps = with_strangers(self.base, forks, strangers)
        else:
            logps, hits, explicit = completion_scores(self.base, forks)
        ref_logps, kl_ref_logps = self._references(examples, logps, kl_logps)
        sizes = [sum(len(completions) for _, completions in forks_of(example)) for example in examples]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return Batch(
            examples=tuple(examples),
            logps=logps,
            ref_logps=ref_logps,
            tokens=torch.tensor([len(c) for _, cs in forks for c in cs], device=logps.device),
            index=tuple(tuple(range(at, at + n)) for at, n in zip(starts, sizes, strict=True)),
            kl_logps=kl_logps,
            kl_ref_logps=kl_ref_logps,
            knobs=self.knobs,
            running=self.running,
            sums=self.sums,
            hits=hits,
            explicit=explicit,
        )

    def _references(
        self, examples: Sequence[Example], logps: Tensor, kl_logps: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        if not self.task.needs_reference:
            return None, None
        if self.untouched:  # policy and reference are one function: equal to the last bit, not to rounding
            return logps.detach(), kl_logps
        own: list[float] = []
        theirs: list[float] = []
        for example in examples:
            values = self.refs[key_of(example)]
            own += values[: len(example.completions)]
            theirs += values[len(example.completions) :]
        return torch.tensor(own, device=logps.device), torch.tensor(theirs, device=logps.device)


def _one_by_one(batch: Batch) -> Iterator[Batch]:
    """Each row as a batch; what is over several rows stays that of the whole."""
    for example, places in zip(batch.examples, batch.index, strict=True):
        some = slice(places[0], places[-1] + 1)
        per_row = (batch.ref_logps, batch.hits, batch.explicit)
        ref_logps, hits, explicit = (None if t is None else t[some] for t in per_row)
        yield replace(
            batch,
            examples=(example,),
            logps=batch.logps[some],
            ref_logps=ref_logps,
            tokens=batch.tokens[some],
            index=(tuple(range(len(places))),),
            running=dict(batch.running),
            sums={},
            hits=hits,
            explicit=explicit,
        )


def _both(one: Callable[[str], bool], other: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda name: one(name) and other(name)


def shared(task: Task, batches: Sequence[Sequence[Example]]) -> list[Sequence[Example]]:
    """This process's part of a step: of each micro-batch; whole ones where the loss of a row depends on the others."""
    if task.joins_rows:
        return list(batches[processes.rank() :: processes.size()])
    return [some for batch in batches if (some := processes.part(batch))]


def weight(task: Task, batch: Sequence[Example]) -> int:
    """A micro-batch's share of its step: rows, or completion tokens where the loss is a mean over tokens."""
    if task.averages == "examples":
        return len(batch)
    return sum(len(c) for example in batch for c in example.completions)


def _sums(each: Sequence[Mapping[str, float]]) -> Metrics:
    return {name: sum(sums[name] for sums in each if name in sums) for sums in each for name in sums}


def _means(history: Sequence[Metrics]) -> Metrics:
    names = dict.fromkeys(name for metrics in history for name in metrics)
    values = {name: [metrics[name] for metrics in history if name in metrics] for name in names}
    return {name: sum(v) / len(v) for name, v in values.items()}
