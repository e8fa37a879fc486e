"""8- and 4-bit base models; bitsandbytes is imported only when needed."""

import sys
from importlib.util import find_spec

import torch
from peft import prepare_model_for_kbit_training
from peft.import_utils import is_bnb_4bit_available, is_bnb_available
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils.import_utils import is_bitsandbytes_available

from core.errors import ConfigError
from core.sections import ModelConfig

REPACKS = "support_avx512bf16_for_cpu"  # attribute of bitsandbytes' Linear4bit


def quantization_config(model: ModelConfig) -> BitsAndBytesConfig | None:
    """transformers' quantisation configuration; None without quantisation. ConfigError without bitsandbytes."""
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


def prepare_for_lora(causal: PreTrainedModel) -> PreTrainedModel:
    """Prepare a quantised model so that gradients of LoRA pass through it."""
    causal = prepare_model_for_kbit_training(causal, use_gradient_checkpointing=False)
    for module in causal.modules():
        # on the CPU in 4 bits, it would repack weights into a form without gradients
        if hasattr(module, REPACKS):
            setattr(module, REPACKS, False)
    return causal


def _installed() -> bool:
    """Whether bitsandbytes can be imported; also makes it visible to peft and transformers again."""
    if sys.modules.get("bitsandbytes", ...) is None:
        del sys.modules["bitsandbytes"]
        for is_available in (is_bnb_available, is_bnb_4bit_available, is_bitsandbytes_available):
            is_available.cache_clear()
    return find_spec("bitsandbytes") is not None
