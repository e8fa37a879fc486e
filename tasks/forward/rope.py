"""Rotary positions whose frequencies depend on the longest sequence of a pass: dynamic NTK scaling and LongRoPE.

Policy and reference are scored in different batches. Up to a length of its own such a model is like any other; above
it, a sequence has its numbers only where it is run by itself (Base.alone_above).
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

STRETCHED = ("dynamic", "longrope")


def alone_above(causal: PreTrainedModel, settings: Mapping[str, Any]) -> int | None:
    """From how many tokens on a sequence has to be run alone; None: never. Makes dynamic frequencies forget the
    sequences before.

    settings: the configuration of the model's text part.
    """
    parameters: dict[str, Any] = settings.get("rope_parameters") or {}  # Any: transformers' own
    each = (
        [parameters] if "rope_type" in parameters else [p for p in parameters.values() if isinstance(p, dict)]
    )
    stretched = [p for p in each if p.get("rope_type") in STRETCHED]
    if not stretched:
        return None
    if any(p.get("rope_type") == "dynamic" for p in stretched):
        for module in causal.modules():
            if "max_seq_len_cached" in vars(module):
                module.register_forward_pre_hook(_forget_length)
    lengths = (
        settings.get("original_max_position_embeddings"),
        causal.config.get_text_config().max_position_embeddings,
    )
    own = [p.get("original_max_position_embeddings") for p in stretched]
    return min(length for length in (*own, *lengths) if length)


def _forget_length(module: nn.Module, _: Any) -> None:  # Any: the inputs, which do not matter
    """As if no sequence had been read: transformers keeps the frequencies of the longest until a short one comes."""
    for name, cached in list(vars(module).items()):
        if name.endswith("max_seq_len_cached") and cached != module.original_max_seq_len:
            prefix = name.removesuffix("max_seq_len_cached")
            original = module.get_buffer(f"{prefix}original_inv_freq")
            module.register_buffer(f"{prefix}inv_freq", original.clone(), persistent=False)
            setattr(module, name, module.original_max_seq_len)
