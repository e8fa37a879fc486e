"""The sides of benchmarks/local_training.py: training by TRL and by Accord on the same rows from the same adapter."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import trl
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PrinterCallback, TrainerCallback
from trl.trainer import utils as trl_utils

from benchmarks.cases import LETTERS, SEED, Case
from core.sections import LoraConfig, ModelConfig
from tasks.forward.reference import reference_logps
from tasks.forward.setup import load_base
from tasks.model import linear
from tasks.model.adapter import get_adapter, initial_adapter, set_adapter
from tasks.model.base import Base
from tasks.tokens.cache import Cache
from tasks.training import loop, trl_engine
from tasks.training.stepper import LocalHooks

SWITCH = "_use_triton"  # a function of TRL

Step = tuple[float, dict[str, Tensor]]  # mean loss over the steps; gradients of the first step, if requested


@dataclass(frozen=True)
class Side:
    """reset(): restore the initial adapter. run(steps, keep): train; keep: return gradients of the first step."""

    reset: Callable[[], None]
    run: Callable[[int, bool], Step]


def trl_default(case: Case) -> Side:
    """TRL as the reference implementations use it: text rows, a new trainer in every round, TRL's defaults."""
    base = load(case)
    base.causal.set_attn_implementation("sdpa")

    def run(steps: int, keep: bool) -> Step:
        with torch_products():
            return _default_round(case.trl or case, base, steps, keep)

    return Side(_reset(base), run)


def trl_tuned(case: Case) -> Side:
    """TRL without gradient checkpointing, with its head on completion rows only and with tokens and reference cached.

    Padding-free batches (sft only, in TRL 1.16) are slower here, since on the CPU they attend over the whole row.
    """
    base = load(case)
    cache = filled(case, base)
    base.causal.set_attn_implementation("sdpa")

    def run(steps: int, keep: bool) -> Step:
        with compact_head(), torch_products():
            return _engine_round(trl_engine.train, case.trl or case, base, cache, steps, keep)

    return Side(_reset(base), run)


def accord_first(case: Case) -> Side:
    """Accord's engine in a client's first round, in which the reference scores every row."""
    base = load(case)
    return Side(
        _reset(base), lambda steps, keep: _engine_round(loop.train, case, base, Cache(None), steps, keep)
    )


def accord(case: Case) -> Side:
    """Accord's engine in later rounds, with cached references."""
    base = load(case)
    cache = filled(case, base)
    return Side(_reset(base), lambda steps, keep: _engine_round(loop.train, case, base, cache, steps, keep))


def accord_torch(case: Case) -> Side:
    """As `accord`, with torch's own matrix products, which TRL uses."""
    base = load(case)
    cache = filled(case, base)

    def run(steps: int, keep: bool) -> Step:
        with torch_products():
            return _engine_round(loop.train, case, base, cache, steps, keep)

    return Side(_reset(base), run)


def plain_selector(case: Case) -> Step:
    """The first step by a plain model: each prompt alone, and the two logits at its end."""
    base = load(case)
    base.causal.set_attn_implementation("sdpa")
    micro = loop.local_batches(len(case.examples), case.cfg, steps=1, seed=SEED)[0]
    drawn = [case.examples[row] for batch in micro for row in batch]
    base.flat.zero_grad()
    total = 0.0
    for example in drawn:
        for right, prompt in enumerate((example.prompt, example.twin)):
            logits = base.model(input_ids=torch.tensor([prompt])).logits[0, -1, list(LETTERS)]
            loss = cross_entropy(logits[None], torch.tensor([right])) / (2 * len(drawn))
            loss.backward()
            total += float(loss.detach())
    gradients = {n: p.grad.clone() for n, p in base.flat.parameters.items() if p.grad is not None}
    return total, gradients


SIDES = {
    "trl-default": trl_default,
    "trl-tuned": trl_tuned,
    "accord-torch": accord_torch,
    "accord-first": accord_first,
    "accord": accord,
}


def load(case: Case) -> Base:
    """Load a separate base, with an adapter that differs from the reference."""
    model = ModelConfig(name=str(case.folder), device="cpu", cpu_threads=case.threads)
    base = load_base.__wrapped__(model, LoraConfig(target_modules="q_proj,v_proj"))
    draw = torch.Generator().manual_seed(SEED)
    tree = initial_adapter(base, SEED)
    for name in sorted(tree):
        if ".lora_B." in name:
            tree[name].normal_(0, 0.02, generator=draw)
    set_adapter(base, tree)
    return base


def filled(case: Case, base: Base) -> Cache:
    """The cache after an earlier round."""
    cache = Cache(None)
    if case.task.needs_reference:
        reference_logps(base, case.examples, cache)
    return cache


def _reset(base: Base) -> Callable[[], None]:
    start = get_adapter(base)
    return lambda: set_adapter(base, start)


def _engine_round(train: Callable[..., loop.TrainReport], case: Case, base: Base, cache: Cache, steps: int,
                  keep: bool) -> Step:  # fmt: skip
    gradients: dict[str, Tensor] = {}

    def correct(name: str, _: Tensor, gradient: Tensor) -> Tensor:
        gradients.setdefault(name, gradient.clone())
        return gradient

    report = train(
        base,
        case.task,
        case.examples,
        case.cfg,
        seed=SEED,
        steps=steps,
        cache=cache,
        hooks=LocalHooks(correct=correct if keep else None),
    )
    return report.metrics["loss"], gradients


def _default_round(case: Case, base: Base, steps: int, keep: bool) -> Step:
    """A round with TRL's defaults, except for batch size, steps and learning rate.

    So that all sides compute the same, it also sets float32 instead of autocast, the order of rows and a constant rate,
    and deletes the "ref" adapter; nothing is written or reported.
    """

    class KeepGradients(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:  # Any: the trainer's state
            for name, parameter in base.flat.parameters.items():
                assert parameter.grad is not None
                gradients.setdefault(name, parameter.grad.clone())

    gradients: dict[str, Tensor] = {}
    kind = case.name.upper()
    with tempfile.TemporaryDirectory() as folder:
        args = getattr(trl, f"{kind}Config")(
            output_dir=folder,
            per_device_train_batch_size=case.cfg.per_device_batch_size,
            max_steps=steps,
            learning_rate=case.cfg.learning_rate,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            max_grad_norm=0.0 if keep else 1.0,  # the callback comes after clipping
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = getattr(trl, f"{kind}Trainer")(
            model=base.model,
            args=args,
            train_dataset=Dataset.from_list(case.text),
            processing_class=base.tokenizer,
            callbacks=[KeepGradients()] if keep else None,
        )
        trainer.remove_callback(PrinterCallback)
        if "ref" in base.model.peft_config:
            base.model.delete_adapter("ref")
        loss = trainer.train().training_loss
    return loss, gradients


@contextmanager
def torch_products() -> Iterator[None]:
    """Compute products with frozen weights by torch instead of oneDNN."""
    default, linear.LEAST = linear.LEAST, sys.maxsize
    try:
        yield
    finally:
        linear.LEAST = default


@contextmanager
def compact_head() -> Iterator[None]:
    """Apply TRL's vocabulary head to completion rows only, as TRL does on CUDA and not on the CPU."""
    default = getattr(trl_utils, SWITCH)
    setattr(trl_utils, SWITCH, lambda device: True)  # this module calls it only to choose rows
    try:
        yield
    finally:
        setattr(trl_utils, SWITCH, default)
