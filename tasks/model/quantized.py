"""Bases in 8 and in 4 bits through bitsandbytes, which a process that wants none is spared."""

import sys
from importlib.util import find_spec

import torch
from peft import prepare_model_for_kbit_training
from peft.import_utils import is_bnb_4bit_available, is_bnb_available
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils.import_utils import is_bitsandbytes_available

from core.errors import ConfigError
from core.sections import ModelConfig

REPACKS = "support_avx512bf16_for_cpu"  # of bitsandbytes' Linear4bit


def settings(model: ModelConfig) -> BitsAndBytesConfig | None:
    """What transformers loads it with; None for a whole one. ConfigError where bitsandbytes is not installed."""
    if model.quantization == "none":
        return None
    if not _installed():
        raise ConfigError(
            f"model.quantization = {model.quantization!r} needs bitsandbytes; install it with: "
            "pip install bitsandbytes"
        )
    if model.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, model.dtype),
    )


def prepared(causal: PreTrainedModel) -> PreTrainedModel:
    """The model loaded with these settings, such that LoRA's gradients pass through it."""
    causal = prepare_model_for_kbit_training(causal, use_gradient_checkpointing=False)
    for module in causal.modules():
        # on CPU, 4 bit: it would repack weights so that no gradient passes through
        if hasattr(module, REPACKS):
            setattr(module, REPACKS, False)
    return causal


def _installed() -> bool:
    """Whether it can be imported; what hid it from peft and transformers is gone after this."""
    if sys.modules.get("bitsandbytes", ...) is None:
        del sys.modules["bitsandbytes"]
        for known in (is_bnb_available, is_bnb_4bit_available, is_bitsandbytes_available):
            known.cache_clear()
    return find_spec("bitsandbytes") is not None
