"""The architectures of transformers that the tests build at tiny size, and how each runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
)

from tests import tiny

Auto = Literal["causal", "image", "masked", "seq2seq"]
CLASSES: Mapping[Auto, Any] = {
    "causal": AutoModelForCausalLM,
    "image": AutoModelForImageTextToText,
    "masked": AutoModelForMaskedLM,
    "seq2seq": AutoModelForSeq2SeqLM,
}
DIMENSIONS: Mapping[str, Any] = {**tiny.DIMENSIONS, "pad_token_id": 0}
FIXED = "transformers cannot replace its attention"
STATE = "it has layers that carry a state from token to token"
LOGITS = "it changes its logits after the head"
HEAD = "its head does not read the last hidden states"
ENCODER = "is an encoder-decoder"
BOTH = "attends in both directions"
IMAGES = "not a causal language model"


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    reason: part of the reason why it is padded or refused. targets: lora.target-modules. oracle: the dtype of the
    gradients of transformers to compare with. generates: whether transformers' own generation works.
    """

    name: str
    path: Literal["packed", "padded", "refused"]
    reason: str = ""
    note: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    model_type: str = ""
    auto: Auto = "causal"
    targets: str = "all-linear"
    oracle: torch.dtype = torch.float64
    generates: bool = True


def folder(path: Path, row: Architecture, *, seed: int = 0) -> Path:
    """A model folder of that architecture with random weights, large enough for every difference to show."""
    settings = {k: v for k, v in {**DIMENSIONS, **row.settings}.items() if v is not ...}
    config = AutoConfig.for_model(row.model_type or row.name, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLASSES[row.auto].from_config(config)
        tiny.randomise(model)
    model.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def _packed(name: str, note: str = "", **settings: Any) -> Architecture:
    return Architecture(name, "packed", "", note, settings)


def _padded(name: str, reason: str, note: str = "", **settings: Any) -> Architecture:
    return Architecture(name, "padded", reason, note, settings)


def _refused(name: str, reason: str, auto: Auto = "causal", **settings: Any) -> Architecture:
    return Architecture(name, "refused", reason, "", settings, auto=auto)


def _of(row: Architecture, **changes: Any) -> Architecture:
    return Architecture(**{**vars(row), **changes})


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED_EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
GROUPS = {"n_group": 1, "topk_group": 1}
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "num_key_value_heads": 4,
}  # fmt: skip
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
ROPE = {"rope_theta": 10000.0, "original_max_position_embeddings": 24}
DYNAMIC = {
    "max_position_embeddings": 24,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
}
LONGROPE = {
    "original_max_position_embeddings": 24,
    "rope_parameters": {
        **ROPE,
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [2.0, 3.0, 4.0, 5.0],
    },
}
PER_LAYER = {"head_dim": 8, "vocab_size_per_layer_input": tiny.VOCABULARY, "hidden_size_per_layer_input": 8}

DENSE = [
    _packed("llama", "grouped keys"),
    _of(_packed("llama dynamic rope", "dynamic NTK scaling: rows above its length run one by one", **DYNAMIC),
        model_type="llama"),
    _packed("mistral", "sliding window", sliding_window=8),
    _packed("ministral", "sliding window", head_dim=8, sliding_window=8),
    _packed("qwen2", vocab_size=tiny.VOCABULARY + 1),  # its tokenizer brings an end of text of its own
    _packed("qwen3", head_dim=8),
    _packed("phi"),
    _packed("phi3", "fused projections"),
    _of(_packed("phi3 longrope", "LongRoPE: rows above the first length run one by one", **LONGROPE),
        model_type="phi3"),
    _packed("gemma", head_dim=8),
    _padded("gemma2", LOGITS, "soft caps", head_dim=8, final_logit_softcapping=0.5),
    _packed("gemma3_text", "sliding and full layers", head_dim=8, **WINDOWS),
    _padded("gemma3n_text", LOGITS, "soft cap", **PER_LAYER, **WINDOWS, num_kv_shared_layers=0, laurel_rank=4,
            altup_num_inputs=2, activation_sparsity_pattern=[0.0, 0.0]),
    _packed("gemma4_text", "per-layer embeddings", **PER_LAYER, **WINDOWS, global_head_dim=8, num_kv_shared_layers=0),
    _padded("vaultgemma", LOGITS, "soft caps", head_dim=8),
    _packed("olmo"),
    _packed("olmo2"),
    _packed("olmo3", "sliding and full layers", **WINDOWS),
    _packed("starcoder2", "sliding window", sliding_window=8),
    _padded("stablelm", "0 calls of 0 modules"),
    _packed("cohere", "scaled logits"),
    _packed("cohere2", "scaled logits, layers without positions", **WINDOWS),
    _packed("granite", "four multipliers, scaled logits", logits_scaling=8.0, embedding_multiplier=12.0,
            attention_multiplier=0.1, residual_multiplier=0.22),
    _padded("granite_swa", "s_aux", "attention sinks", sliding_window=8),
    _packed("smollm3", "layers without positions"),
    _padded("nemotron", "0 calls of 0 modules"),
    _packed("glm", head_dim=8),
    _packed("glm4", head_dim=8),
    _packed("helium", head_dim=8),
    _of(_packed("internlm3", "a Llama in transformers", head_dim=8), model_type="internlm3"),
    _packed("exaone4", "sliding and full layers", **WINDOWS),
    _packed("ernie4_5", head_dim=8),
    _packed("seed_oss", head_dim=8),
    _packed("arcee"),
    _packed("apertus"),
    _packed("bitnet"),
    _packed("hunyuan_v1_dense", head_dim=8),
    _packed("persimmon"),
    _packed("jais2"),
    _packed("cwm", "sliding and full layers", head_dim=8, **WINDOWS),
    _padded("nanochat", LOGITS, "soft cap"),
    _padded("diffllama", "4 calls of 2 modules", "differential attention"),
    _padded("doge", "a custom mask", "dynamic mask"),
    _padded("falcon", FIXED),
    _of(_padded("falcon alibi", FIXED, "ALiBi", alibi=True, new_decoder_architecture=False), model_type="falcon"),
    _packed("gpt2", "learned positions"),
    _packed("gpt_bigcode", "learned positions, one key head"),
    _padded("gptj", FIXED, rotary_dim=4),
    _padded("gpt_neo", FIXED, "local and global layers", num_hidden_layers=..., num_attention_heads=..., num_layers=2,
            num_heads=4, attention_types=[[["global", "local"], 1]], window_size=8),
    _packed("gpt_neox"),
    _padded("gpt_neox_japanese", FIXED),
    _padded("codegen", FIXED, rotary_dim=4),
    _padded("openai-gpt", FIXED, "learned positions"),
    _packed("ctrl", "sinusoidal positions"),
    _padded("bloom", FIXED, "ALiBi"),
    _padded("mpt", FIXED, "ALiBi"),
    _packed("opt", "learned positions, layer dropout", ffn_dim=64, word_embed_proj_dim=32),
    _packed("biogpt", "learned positions, layer dropout"),
    _of(_padded("xglm", FIXED, "layer dropout", ffn_dim=64), oracle=torch.float32),
    _padded("modernbert-decoder", HEAD, "local and global layers", local_attention=8),
]  # fmt: skip
MIXTURES = [
    _packed("mixtral", **LOCAL_EXPERTS),
    _packed("qwen2_moe", **EXPERTS, moe_intermediate_size=32, shared_expert_intermediate_size=32),
    _packed("qwen3_moe", **EXPERTS, moe_intermediate_size=32, head_dim=8),
    _packed("olmoe", **EXPERTS),
    _packed("flex_olmo", **EXPERTS),
    _packed("afmoe", **EXPERTS, moe_intermediate_size=32, head_dim=8),
    _packed("deepseek_v2", "latent attention", **LATENT, **ROUTED_EXPERTS, **GROUPS, v_head_dim=8),
    _packed("deepseek_v3", "latent attention", **LATENT, **ROUTED_EXPERTS, **GROUPS, v_head_dim=16),
    _padded("gpt_oss", "s_aux", "attention sinks", **LOCAL_EXPERTS, head_dim=8, sliding_window=8),
    _packed("granitemoe", **LOCAL_EXPERTS),
    _packed("phimoe", **LOCAL_EXPERTS),
    _packed("glm4_moe", **ROUTED_EXPERTS, **GROUPS, head_dim=8),
    _packed("ernie4_5_moe", moe_num_experts=4, moe_k=2, moe_intermediate_size=32, head_dim=8),
    _packed("jetmoe", "experts of attention", num_local_experts=4, kv_channels=8, num_key_value_heads=4),
    _packed("minimax_m2", **LOCAL_EXPERTS, head_dim=8),
    _of(_padded("llama4_text", "chunks of 8", "chunked attention", num_local_experts=2, num_experts_per_tok=1,
                head_dim=8, intermediate_size_mlp=64, attention_chunk_size=8)),
]  # fmt: skip
HYBRIDS = [
    _padded("qwen3_next", "linear_attention", **LINEAR, **EXPERTS, moe_intermediate_size=32,
            shared_expert_intermediate_size=32, head_dim=8),
    _padded("qwen3_5_text", "linear_attention", **LINEAR, head_dim=8),
    _padded("olmo_hybrid", "linear_attention", **{**LINEAR, "linear_num_key_heads": 4}),
    _padded("minimax", "linear_attention", "lightning attention", num_local_experts=4, head_dim=8, block_size=4),
    _padded("jamba", STATE, num_experts=2, num_experts_per_tok=1, expert_layer_period=2, expert_layer_offset=1,
            attn_layer_period=2, attn_layer_offset=1, mamba_d_state=8, mamba_dt_rank=4, use_mamba_kernels=False),
    _padded("bamba", STATE, attn_layer_indices=[1], **MAMBA),
    _padded("granitemoehybrid", "linear_attention", layer_types=["mamba", "attention"], shared_intermediate_size=32,
            **LOCAL_EXPERTS, **MAMBA),
    _padded("falcon_h1", STATE, mamba_d_ssm=64, head_dim=8, **MAMBA),
    _padded("zamba2", STATE, layers_block_type=["mamba", "hybrid"], mamba_d_state=8, mamba_headdim=8, n_mamba_heads=8,
            mamba_ngroups=1, chunk_size=8, num_mem_blocks=1, attention_hidden_size=64, attention_head_dim=16),
    _padded("lfm2", "conv", layer_types=["conv", "full_attention"]),
    _padded("recurrent_gemma", STATE, block_types=["recurrent", "attention"], lru_width=32, attention_window_size=8,
            head_dim=8, num_key_value_heads=1),
    _padded("rwkv", FIXED, attention_hidden_size=32, context_length=512),
    _padded("mamba", STATE, state_size=8, num_attention_heads=...),
    _padded("mamba2", STATE, state_size=8, num_heads=8, head_dim=8, n_groups=1, chunk_size=8),
    _padded("falcon_mamba", STATE, state_size=8),
    _of(_padded("xlstm", LOGITS, "transformers cannot generate with it"), generates=False),
]  # fmt: skip
OTHERS = [
    _of(_padded("bert as a decoder", HEAD, "is_decoder = true", is_decoder=True), model_type="bert"),
    _of(_padded("roberta as a decoder", HEAD, "is_decoder = true", is_decoder=True), model_type="roberta"),
    _refused("bert", BOTH),
    _refused("roberta", BOTH),
    _refused("electra", BOTH),
    _refused("modernbert", IMAGES, "masked"),
    _refused("xlm", "is not causal"),
    _refused("t5", ENCODER, "seq2seq", d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, num_hidden_layers=...,
             num_attention_heads=..., hidden_size=...),
    _refused("bart", ENCODER, "seq2seq", d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
             decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, num_hidden_layers=..., hidden_size=...,
             num_attention_heads=...),
]  # fmt: skip
ROWS: dict[str, Architecture] = {row.name: row for row in (*DENSE, *MIXTURES, *HYBRIDS, *OTHERS)}
