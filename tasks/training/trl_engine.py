"""Training by TRL's trainers, with the interface of tasks.training.loop: the engine of `train.engine = "trl"`.

It is slower than Accord's loop, runs every model that transformers runs, and is the oracle of the parity tests.
Differences from plain TRL 1.16: rows are token ids, in the batches that tasks.training.loop draws; the reference is
the frozen base (given a PeftModel, TRL would copy its adapter, the model at the start of the round); no telemetry, no
files, no autocast; model, configuration and global generators are restored, except for the trained adapter. In sft the
base model's own dropout is active, if it has any. Importing this module takes seconds, so import it where it is used.
"""

import copy
import random
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer
from transformers.utils import logging as transformers_logging
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from core.errors import ConfigError, DataError
from core.local_steps import Correction
from core.sections import TrainConfig
from core.types import Metrics, Scalar
from tasks.base import Example, Task, TrlTraining
from tasks.forward.reference import reference_logps
from tasks.model.attach import unnamed_layers
from tasks.model.base import Base
from tasks.tokens.cache import Cache
from tasks.tokens.choice import check_certain
from tasks.tokens.encode import key_of
from tasks.training.loop import NO_OPTIONS, TrainReport, local_batches
from tasks.training.stepper import NO_HOOKS, LocalHooks

NOT_METRICS = ("train_", "total_flos", "epoch", "step", "num_tokens")
References = Mapping[str, tuple[float, ...]]  # by example key


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
    """Like tasks.training.loop.train, by SFTTrainer, DPOTrainer or KTOTrainer; TrainReport.sums stays empty.

    With a cache, the log-probabilities of the reference come from it; otherwise TRL computes them in every step.
    Of `hooks`, only `correct` has an effect here, for tests; client_app.site refuses rules that modify steps.

    Raises:
        ConfigError: TRL does not support the task, its settings or an adapted layer.
        DataError: `examples` is empty.
    """
    started = time.perf_counter()
    if not examples:
        raise DataError("a client without usable rows cannot train")
    steps = cfg.local_steps
    size = min(cfg.per_device_batch_size, len(examples))
    training = _declared(task, options, size)
    if layers := unnamed_layers(base.model):
        raise ConfigError(
            f"train.engine = 'trl': TRL's second adapter would omit {layers[0]!r}, whose name peft takes for that of "
            "an expert; use train.engine = 'accord', or leave it out of lora.target-modules"
        )
    check_certain(examples)
    examples = task.prepare(examples, seed=data_seed, max_length=cfg.max_length)
    batches = local_batches(len(examples), cfg, steps=steps, seed=seed, rnd=rnd)
    rows = [examples[row] for micro in batches for batch in micro for row in batch]
    refs = reference_logps(base, rows, cache) if cache and task.needs_reference else None
    with _undisturbed(base), tempfile.TemporaryDirectory() as folder:
        arguments = {**_arguments(base, cfg), "output_dir": folder, "max_steps": steps, "seed": seed % 2**32}
        arguments["per_device_train_batch_size"] = size
        trainer = _trainer(base, training, rows, arguments, refs)
        trainer.base, trainer.correct = base, hooks.correct
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        metrics = _metrics(trainer.state.log_history[-1])
    return TrainReport(steps, len(rows), metrics, seconds=time.perf_counter() - started)


class _OnTokens(Trainer):
    """Overrides that the three trainers share."""

    base: Base
    correct: Correction | None = None

    def _prepare_dataset(self, *args: Any, **_: Any) -> Any:  # Any: other arguments in each trainer
        """Return the dataset unchanged; TRL would tokenise text here."""
        return args[0]

    def _send_telemetry(self) -> None:
        """Do nothing; TRL would report the kind of model, GPU and data to its developers."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:  # Any: Trainer's own arguments
        loss = super().training_step(*args, **kwargs)
        if (
            self.correct and self.accelerator.sync_gradients
        ):  # the last micro-batch of a step, before clipping
            for name, parameter in self.base.flat.parameters.items():
                assert parameter.grad is not None, name
                parameter.grad = self.correct(name, parameter.detach(), parameter.grad)
        return loss


class _SFTOnTokens(_OnTokens, SFTTrainer):
    pass


class _DPOOnTokens(_OnTokens, DPOTrainer):
    pass


class _KTOOnTokens(_OnTokens, KTOTrainer):
    pass


# the trainer and its configuration, by TrlTraining.trainer
TRAINERS: Mapping[str, tuple[Any, Any]] = {
    "sft": (_SFTOnTokens, SFTConfig),
    "dpo": (_DPOOnTokens, DPOConfig),
    "kto": (_KTOOnTokens, KTOConfig),
}


def _declared(task: Task, options: Mapping[str, Scalar], batch_size: int) -> TrlTraining:
    """How TRL trains the task. Raises ConfigError for tasks and settings that TRL 1.16 does not support."""
    training = task.trl(options, batch_size) if "trl" in task.engines else None
    if training is None:
        raise ConfigError(
            f"train.engine = 'trl' cannot train {type(task).__name__}, whose engines are "
            f"{', '.join(task.engines)}; use train.engine = 'accord'"
        )
    return training


def _arguments(base: Base, cfg: TrainConfig) -> dict[str, Any]:  # Any: fields of TrainingArguments
    """Arguments common to the three trainers; optimiser and clipping equal those of tasks.training.loop."""
    on_cpu = base.device.type == "cpu"
    return {
        "gradient_accumulation_steps": cfg.gradient_accumulation_steps,
        "optim": {"adamw": "adamw_torch_fused", "sgd": "sgd"}[cfg.optimizer],
        "learning_rate": cfg.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": cfg.weight_decay,
        "max_grad_norm": cfg.max_grad_norm,
        "train_sampling_strategy": "sequential",  # the rows are already in the order of the batches
        "max_length": None,  # the rows are already truncated
        "bf16": False,  # TRL's default is autocast to bfloat16, on the CPU as well
        "gradient_checkpointing": False,  # a base loaded with it does it anyway, with these arguments:
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def _trainer(
    base: Base,
    training: TrlTraining,
    rows: Sequence[Example],
    arguments: Mapping[str, Any],  # Any: fields of TrainingArguments
    refs: References | None,
) -> _OnTokens:
    """The trainer of a task, with the frozen base as its reference."""
    weights_before = [(parameter, parameter.data) for parameter in base.flat.parameters.values()]
    trainer_class, config = TRAINERS[training.trainer]
    columns = training.columns(rows)
    if refs is not None:
        logps = [refs[key_of(e)] for e in rows]
        columns |= {name: [row[i] for row in logps] for i, name in enumerate(training.references)}
    trainer = trainer_class(
        model=base.model,
        processing_class=base.tokenizer,
        args=config(**arguments, **training.options),
        train_dataset=Dataset.from_dict(columns),
    )
    if not training.references:
        return trainer
    base.model.delete_adapter("ref")  # TRL's reference would be this copy of the initial adapter
    for parameter, data in weights_before:
        parameter.data = data  # over a quantised base TRL converts them to bfloat16
    trainer.precompute_ref_logps = refs is not None  # TRL's own argument would hash every weight of the base
    return trainer


@contextmanager
def _undisturbed(base: Base) -> Iterator[None]:
    """Restore on exit whatever a trainer changes in the base and in global state, except the adapter's weights."""
    causal = base.causal
    attributes = {name: causal.__dict__.get(name) for name in ("config", "generation_config", "forward")}
    dropouts = [(module, module.p) for module in base.model.modules() if isinstance(module, nn.Dropout)]
    generators = random.getstate(), np.random.get_state()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it would warn in every round that pad and eos come from the tokenizer
    causal.config, causal.generation_config = (
        copy.deepcopy(causal.config),
        copy.deepcopy(causal.generation_config),
    )
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        if "ref" in base.model.peft_config:  # left by a constructor that failed
            base.model.delete_adapter("ref")
        for module, p in dropouts:
            module.p = p
        for name, value in attributes.items():
            if value is None:
                causal.__dict__.pop(name, None)
            else:
                setattr(causal, name, value)
        base.model.eval()


def _metrics(last: Mapping[str, float]) -> Metrics:
    """The means over all batches under TRL's names, and the loss."""
    metrics = {name: float(value) for name, value in last.items() if not name.startswith(NOT_METRICS)}
    return {"loss": float(last["train_loss"]), **metrics}
