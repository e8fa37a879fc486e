"""Accord's training loop: draw a batch, pack it, forward, loss, backward, correct the gradients, clip, step."""

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
from tasks.base import Batch, Example, LossOutput, Stage, Task
from tasks.forward import processes
from tasks.forward.batches import by_budget, draw, subset
from tasks.forward.logprobs import choice_logits, completion_scores, with_mismatched
from tasks.forward.modes import training
from tasks.forward.reference import forks_of, reference_logps, tokens_of
from tasks.model.adapter import is_untouched
from tasks.model.base import Base
from tasks.scoring.evaluate import TOKENS, evaluate
from tasks.tokens.cache import Cache
from tasks.tokens.encode import key_of
from tasks.training.stepper import NO_HOOKS, LocalHooks, Stepper

__all__ = ["TrainReport", "evaluate", "local_batches", "train"]

NO_OPTIONS: Mapping[str, Scalar] = {}


@dataclass(frozen=True)
class TrainReport:
    steps: int  # optimiser steps
    rows: int  # rows trained on, counted with repetition
    metrics: Metrics  # means over batches, under TRL's names; a metric without data is absent
    sums: Metrics = field(default_factory=dict)  # additive over clients, for Task.pooled_options
    gradients: Tree | None = field(
        default=None, compare=False
    )  # mean over the steps, if hooks.wants_gradients
    moments: dict[str, Tree] = field(
        default_factory=dict, compare=False
    )  # Adam's, under train.optimizer-state = keep
    seconds: float = 0.0


def train(
    base: Base,
    task: Task,
    examples: Sequence[Example],
    cfg: TrainConfig,
    *,
    seed: int,
    data_seed: int = 0,
    rnd: int = 1,
    options: Mapping[str, Scalar] = NO_OPTIONS,
    cache: Cache | None = None,
    hooks: LocalHooks = NO_HOOKS,
) -> TrainReport:
    """Train the base's current adapter in place, at a constant learning rate.

    The same arguments give the same bytes on the same machine.

    Args:
        seed: seeds the batches and dropout; differs by run, round and client.
        data_seed: seeds what is fixed for a client in all rounds (KTO's mismatched pairs).
        rnd: the round, which decides the rows that are drawn.
        options: of the order, such as those of Task.pooled_options.
        hooks: changes by the algorithm and by the client's private memory; private_steps come on top of cfg's.

    Raises:
        DataError: `examples` is empty.
    """
    started = time.perf_counter()
    if not examples:
        raise DataError("a client without usable rows cannot train")
    stages = (Stage(hooks.private_steps, is_private), *task.stages(cfg.local_steps))
    stages = [stage for stage in stages if stage.steps]
    steps = sum(stage.steps for stage in stages)
    examples = task.prepare(examples, seed=data_seed, max_length=cfg.max_length)
    batches = local_batches(len(examples), cfg, steps=steps, seed=seed, rnd=rnd)
    refs: Mapping[str, tuple[float, ...]] = {}
    if task.needs_reference:
        drawn = sorted({row for micro in batches for batch in micro for row in batch})
        refs = reference_logps(base, [examples[row] for row in drawn], cache or Cache(None))
    scorer = _BatchScorer(base, task, refs, options)
    history: list[Metrics] = []
    gradients: Tree = {}
    moments: dict[str, Tree] = {}
    queue = iter(batches)
    for stage in stages:
        stage_hooks = replace(
            hooks, trains=_both(hooks.trains, stage.trains), moments={**hooks.moments, **moments}
        )
        # Rank 0 seeds dropout as a single process does; every other rank draws masks of its own.
        mask_seed = seed_for(seed, "dropout", *([processes.rank()] if processes.rank() else []))
        dropout = {"dropout": not task.needs_reference, "seed": mask_seed}
        stepper = Stepper(base.flat, cfg, stage_hooks, task.rate)
        with training(base, **dropout, trains=stage_hooks.trains):
            for micro in islice(queue, stage.steps):
                history += scorer.step([[examples[row] for row in batch] for batch in micro], stepper)
        gradients |= stepper.mean_gradient() or {}
        moments |= stepper.moments()
    rows = sum(len(batch) for micro in batches for batch in micro)
    history = [metrics for batches_of_rank in processes.gather(history) for metrics in batches_of_rank]
    sums = _sums(processes.gather(scorer.sums))
    return TrainReport(
        steps, rows, _means(history), sums, gradients or None, moments, time.perf_counter() - started
    )


def row_losses(
    base: Base,
    task: Task,
    examples: Sequence[Example],
    *,
    refs: Mapping[str, tuple[float, ...]],
    options: Mapping[str, Scalar],
) -> list[float]:
    """The task's loss of each prepared example under the base's current adapter.

    A quantity over several rows (KTO's reference point) is computed over the rows that are scored at once. The mean
    of the losses, weighted by `weight`, is the loss of all examples.
    """
    scorer = _BatchScorer(base, task, refs, options)
    losses: list[float] = []
    base.model.eval()
    with torch.no_grad():
        for group in by_budget(examples, tokens_of, TOKENS):
            batch = scorer.batch(group)
            for row in _single_row_batches(batch):
                output = task.loss(row)
                # a loss that the task reports takes precedence
                losses.append(output.metrics.get("loss", float(output.loss)))
            scorer.score(batch)  # for the state that the task carries to the next batch
    return losses


def local_batches(
    rows: int, cfg: TrainConfig, *, steps: int, seed: int, rnd: int = 1
) -> list[list[list[int]]]:
    """Row numbers of every micro-batch of every step; under train.row-sampling = openfedllm `rnd` selects the rows."""
    size, accumulate = cfg.per_device_batch_size, cfg.gradient_accumulation_steps
    most = size * accumulate * steps
    pool = subset(rows, most, rnd) if cfg.row_sampling == "openfedllm" else range(rows)
    drawn = draw(len(pool), size, steps * accumulate, rng_for(seed, "rows"))
    flat = [[pool[place] for place in batch] for batch in drawn]
    return [flat[i : i + accumulate] for i in range(0, len(flat), accumulate)]


class _BatchScorer:
    """Computes batches and their losses at the model's current weights, and collects the task's sums."""

    def __init__(
        self, base: Base, task: Task, refs: Mapping[str, tuple[float, ...]], options: Mapping[str, Scalar]
    ) -> None:
        self.base, self.task, self.refs, self.options = base, task, refs, options
        self.running: Mapping[str, float] = {}
        self.sums: dict[str, float] = {}
        self.untouched = is_untouched(base)

    def step(self, batches: Sequence[Sequence[Example]], stepper: Stepper) -> list[Metrics]:
        """Take one optimiser step over the micro-batches. Returns the metrics of each batch, then those of the step."""
        self.base.flat.zero_grad()
        out: list[Metrics] = []
        total_weight = sum(weight(self.task, batch) for batch in batches)
        for batch in shared(self.task, batches):
            output = self.score(self.batch(batch))
            (output.loss * (weight(self.task, batch) / total_weight)).backward()
            out.append({"loss": float(output.loss.detach()), **output.metrics})
        processes.all_reduce(self.base.flat.gradients)
        out.append({"grad_norm": stepper.step()})
        self.untouched = False
        return out

    def score(self, batch: Batch) -> LossOutput:
        """The loss of the next batch; keeps what the task carries to the one after it, and adds up its sums."""
        output = self.task.loss(batch)
        self.running = output.running
        for name, value in output.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        return output

    def batch(self, examples: Sequence[Example]) -> Batch:
        forks = [fork for example in examples for fork in forks_of(example)]
        mismatched = [example.mismatched for example in examples]
        kl_logps = hits = explicit = None
        if self.task.reads == "choices":
            logps = choice_logits(self.base, forks).flatten()
        elif any(mismatched):
            logps, kl_logps = with_mismatched(self.base, forks, mismatched)
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
            options=self.options,
            running=self.running,
            hits=hits,
            explicit=explicit,
        )

    def _references(
        self, examples: Sequence[Example], logps: Tensor, kl_logps: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        if not self.task.needs_reference:
            return None, None
        if self.untouched:  # policy and reference are the same function; equal bits, not equal up to rounding
            return logps.detach(), kl_logps
        ref_logps: list[float] = []
        kl_ref_logps: list[float] = []
        for example in examples:
            values = self.refs[key_of(example)]
            ref_logps += values[: len(example.completions)]
            kl_ref_logps += values[len(example.completions) :]
        return torch.tensor(ref_logps, device=logps.device), torch.tensor(kl_ref_logps, device=logps.device)


def _single_row_batches(batch: Batch) -> Iterator[Batch]:
    """Each row as a batch of its own; quantities over several rows remain those of the whole batch."""
    for example, places in zip(batch.examples, batch.index, strict=True):
        span = slice(places[0], places[-1] + 1)
        per_row = (batch.ref_logps, batch.hits, batch.explicit)
        ref_logps, hits, explicit = (None if t is None else t[span] for t in per_row)
        yield replace(
            batch,
            examples=(example,),
            logps=batch.logps[span],
            ref_logps=ref_logps,
            tokens=batch.tokens[span],
            index=(tuple(range(len(places))),),
            hits=hits,
            explicit=explicit,
        )


def _both(first: Callable[[str], bool], second: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda name: first(name) and second(name)


def shared(task: Task, batches: Sequence[Sequence[Example]]) -> list[Sequence[Example]]:
    """This process's part of a step: a part of each micro-batch, or whole micro-batches for a task that joins rows."""
    if task.joins_rows:
        return list(batches[processes.rank() :: processes.size()])
    return [part for batch in batches if (part := processes.part(batch))]


def weight(task: Task, batch: Sequence[Example]) -> int:
    """A micro-batch's weight in its step: its rows, or its completion tokens if the loss is a mean over tokens."""
    if task.averages == "examples":
        return len(batch)
    return sum(len(c) for example in batch for c in example.completions)


def _sums(by_rank: Sequence[Mapping[str, float]]) -> Metrics:
    return {name: sum(sums[name] for sums in by_rank if name in sums) for sums in by_rank for name in sums}


def _means(history: Sequence[Metrics]) -> Metrics:
    names = dict.fromkeys(name for metrics in history for name in metrics)
    values = {name: [metrics[name] for metrics in history if name in metrics] for name in names}
    return {name: sum(v) / len(v) for name, v in values.items()}
