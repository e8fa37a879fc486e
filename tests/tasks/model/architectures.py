"""Small models of various architectures, with LoRA, in this project and in peft."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from core.sections import LoraConfig, ModelConfig
from tasks.base import Example
from tasks.forward.setup import load_base
from tasks.model.base import Base
from tests import tiny

R, ALPHA = 4, 6
SHARED = {**tiny.DIMENSIONS, "max_position_embeddings": 128}
FEW = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
TEXT = {**SHARED, "head_dim": 8, "pad_token_id": 0}
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {**FEW, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {**FEW, "head_dim": 8},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v2": {**LATENT, **ROUTED, "n_shared_experts": 1},
    "deepseek_v3": {**LATENT, **ROUTED, "n_group": 1, "topk_group": 1},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "jamba": {
        "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4,
    },
    "llama4_text": {"num_local_experts": 4, "intermediate_size_mlp": 64, "head_dim": 8, "interleave_moe_layer_step": 1},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_layer_start_index": 1},
    "jetmoe": {"num_local_experts": 4, "kv_channels": 8, "num_key_value_heads": 4},
    "glm4_moe": {**ROUTED, "head_dim": 8},
    "afmoe": {**FEW, "num_dense_layers": 1, "head_dim": 8},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2, "head_dim": 8},
    "llama": {"tie_word_embeddings": True},
    "gpt2": {},
    "gemma3": {"text_config": TEXT, "vision_config": VISION, "mm_tokens_per_image": 4, "image_token_index": 90},
    "fuyu": {"hidden_size": 32, "text_config": {**TEXT, "model_type": "persimmon"}, "patch_size": 8, "image_size": 16},
    "git": {"vision_config": VISION},
    "phi4_multimodal": {
        "vision_config": {**VISION, "crop_size": 16},
        "audio_config": {"hidden_size": 32, "intermediate_size": 32, "num_blocks": 1, "num_attention_heads": 4},
    },
}  # fmt: skip
COMPOSITE = ("gemma3", "fuyu")
MEDIA = (*COMPOSITE, "git", "phi4_multimodal")
EXPERTS = tuple(list(CONFIGS)[:16])
IDS = torch.tensor([[1, 5, 9, 30, 7, 11]])
EXAMPLES = [Example((1, 5, 9 + i), ((30 + i, 4, 2), (7, 2))) for i in range(4)]


def loaded(folder: Path, targets: str = "all-linear", **keys: Any) -> Base:
    lora = LoraConfig(**{"r": R, "alpha": ALPHA, "target_modules": targets, **keys})
    return load_base.__wrapped__(ModelConfig(name=str(folder)), lora)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def in_peft(folder: Path, adapter: Path) -> Tensor:
    """The logits of the folder's model with a saved adapter; a warning of an unmatched tensor is an error."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(adapter keys|unexpected keys|not match any).*")
        return logits(PeftModel.from_pretrained(plain, str(adapter)))
