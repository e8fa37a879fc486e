"""Rotary positions whose frequencies depend on the longest sequence of a pass: dynamic NTK scaling and LongRoPE.

Policy and reference are scored in different batches, whose longest sequences differ. Up to a certain length the
frequencies of such a model are constant; a longer sequence must be run by itself (Base.unbatched_above).
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

STRETCHED = ("dynamic", "longrope")


def unbatched_above(causal: PreTrainedModel, settings: Mapping[str, Any]) -> int | None:
    """The length in tokens above which a sequence must be run alone; None if there is no such length.

    Also registers hooks that reset dynamic frequencies before each pass. settings: the configuration of the model's
    text part.
    """
    parameters: dict[str, Any] = settings.get("rope_parameters") or {}  # Any: values of several types
    entries = (
        [parameters] if "rope_type" in parameters else [p for p in parameters.values() if isinstance(p, dict)]
    )
    stretched = [p for p in entries if p.get("rope_type") in STRETCHED]
    if not stretched:
        return None
    if any(p.get("rope_type") == "dynamic" for p in stretched):
        for module in causal.modules():
            if "max_seq_len_cached" in vars(module):
                module.register_forward_pre_hook(_reset_length)
    lengths = (
        settings.get("original_max_position_embeddings"),
        causal.config.get_text_config().max_position_embeddings,
    )
    original_lengths = [p.get("original_max_position_embeddings") for p in stretched]
    return min(length for length in (*original_lengths, *lengths) if length)


def _reset_length(module: nn.Module, _: Any) -> None:  # Any: the inputs, which are not used
    """Restore the original frequencies; transformers keeps those of the longest sequence until a short one comes."""
    for name, cached in list(vars(module).items()):
        if name.endswith("max_seq_len_cached") and cached != module.original_max_seq_len:
            prefix = name.removesuffix("max_seq_len_cached")
            original = module.get_buffer(f"{prefix}original_inv_freq")
            module.register_buffer(f"{prefix}inv_freq", original.clone(), persistent=False)
            setattr(module, name, module.original_max_seq_len)
