"""Load the frozen base model with one LoRA adapter, once per process, and choose packed or padded batches."""

import gc
import logging
from pathlib import Path

import torch
from transformers import PreTrainedModel

from core import caches, factors
from core.caches import Holds, cached
from core.devices import check_device
from core.errors import ConfigError
from core.sections import LoraConfig, ModelConfig
from tasks.base import NO_PARTS, Parts
from tasks.forward.causal import refuse_encoders
from tasks.forward.packing_choice import choose_path
from tasks.model import quantized
from tasks.model.adapter import count
from tasks.model.attach import attach
from tasks.model.base import Base
from tasks.model.fingerprint import fingerprint
from tasks.model.flat import Flat
from tasks.model.head import Head
from tasks.model.linear import use_onednn
from tasks.model.merged_factors import MergedFactors
from tasks.model.private_parts import PrivateParts
from tasks.pretrained.loading import check_vocabulary, load_causal, load_tokenizer
from tasks.pretrained.snapshot import check_folder, fetch

log = logging.getLogger(__name__)

_forgotten = 0  # number of bases that this process has loaded and released


@cached(Holds.BASE)
def load_base(model: ModelConfig, lora: LoraConfig, parts: Parts = NO_PARTS) -> Base:
    """The base for these settings, loaded once per process; loads() counts loads.

    parts: the private parts that a task adds for each client; the server's base has none.

    Raises:
        ConfigError: the model does not exist, is no causal decoder, has a tokenizer without an end-of-text token, or
            cannot run on this machine with this placement or quantization.
    """
    if model.cpu_threads:
        torch.set_num_threads(model.cpu_threads)
    folder = resolve(model)
    placement = _placement(model)
    quantization = quantized.quantization_config(model)
    # Before the tokenizer: that of an encoder may have no end-of-text token, which would be a misleading error.
    refuse_encoders(folder)
    tokenizer = load_tokenizer(folder)
    causal = load_causal(folder, model, placement, quantization)
    check_vocabulary(tokenizer, causal, folder)
    if quantization is not None:
        causal = quantized.prepare_for_lora(causal)
    if model.gradient_checkpointing:
        causal.gradient_checkpointing_enable({"use_reentrant": False})
    adapted = attach(causal, lora)
    weights = {_state_dict_name(n): p for n, p in adapted.named_parameters() if p.requires_grad}
    private = _private_parts(causal, parts)
    flat = Flat({**weights, **private.tensors})
    numerics = f"{model.dtype}-{model.quantization}"
    layers = {
        name: adapted.get_submodule(name.split(".lora_A.")[0]) for name in weights if factors.is_a(name)
    }
    base = Base(
        adapted, tokenizer, fingerprint(folder, tokenizer), numerics, flat, private, MergedFactors(layers), lora.r,
        Head(None), False,
    )  # fmt: skip
    choose_path(base)
    use_onednn(adapted)
    parameters = sum(p.numel() for p in causal.parameters())
    log.info(
        "base model=%s fingerprint=%s parameters=%d lora=%d private=%d path=%s device=%s",
        model.name, base.fingerprint[:12], parameters - count(weights), count(weights), count(private.tensors),
        "packed" if base.packed else "padded", base.device,
    )  # fmt: skip
    return base


def loads() -> int:
    """Number of bases that this process has loaded."""
    return _forgotten + load_base.cache_info().misses


def forget() -> None:
    """Release every base of this process; memory is freed once no other reference holds it."""
    global _forgotten
    _forgotten = loads()
    caches.drop(Holds.BASE)
    gc.collect()  # modules and hooks form reference cycles
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@cached(Holds.BASE)
def resolve(model: ModelConfig) -> Path:
    """The folder of a model (tasks/pretrained/snapshot.py), cached for the process until forget()."""
    return fetch(model)


@cached(Holds.BASE)
def is_pickled(model: ModelConfig) -> bool:
    """Whether a model has pickled weights (pytorch_model.bin), which are converted before loading."""
    return check_folder(resolve(model)).pickled


def _placement(model: ModelConfig) -> str | dict[str, str]:
    gpus = torch.cuda.device_count() if model.device != "cpu" and torch.cuda.is_available() else 0
    check_device(model, gpus)
    if model.device == "balanced":
        return "balanced"
    if model.device == "auto":
        return {"": "cuda" if gpus else "cpu"}
    return {"": model.device}


def _state_dict_name(parameter: str) -> str:
    """A parameter's name in peft's state dict, which leaves out the name of the adapter."""
    for factor in ("lora_A", "lora_B"):
        parameter = parameter.replace(f".{factor}.default.", f".{factor}.")
    return parameter


def _private_parts(causal: PreTrainedModel, parts: Parts) -> PrivateParts:
    head = causal.get_output_embeddings()
    if parts == NO_PARTS:
        return PrivateParts(parts, torch.empty(0, 0))
    if head is None:
        raise ConfigError(
            f"model.name: {type(causal).__name__} has no vocabulary head, which a client's private parts require"
        )
    private = PrivateParts(parts, head.weight)  # type: ignore[arg-type]  # typed as Tensor | Module
    private.join(head)
    return private
