"""The frozen base model with one LoRA adapter, as the rest of the engine holds it (made by model.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core import factors
from tasks.model.flat import Flat
from tasks.model.head import Head
from tasks.model.merged_factors import Beside
from tasks.model.private_parts import PrivateParts

if TYPE_CHECKING:  # not before quantized.py has decided whether it finds bitsandbytes
    from peft import PeftModel


@dataclass(eq=False)
class Base:
    """A frozen base model with one LoRA adapter, and how it is run. Kept for the life of the process.

    The model is in evaluation mode: preference tasks train without dropout, as in TRL; `training()` turns the
    adapter's own dropout on for sft.
    """

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    numerics: str  # dtype and quantization: what cached numbers depend on besides the weights
    flat: Flat  # the adapter's weights and, under names of their own, the private parts', float32
    private_parts: PrivateParts  # what is the client's own behind the body; without parts it does nothing
    beside: (
        Beside  # what rounds past have merged (lora.aggregation = fedex | flora); no part of the reference
    )
    rank: int  # of the adapter in use; the places above it are zero in A and in B, and stay so
    head: Head
    packed: bool  # packed forks; else padded batches and full logits
    path_reason: str = ""  # why it is not packed; "" where it is
    logit_scale: float = 1.0  # of a packed base: by which the model multiplies the logits of its head
    alone_above: int | None = (
        None  # sequences of more tokens are run one by one: their length is part of the result
    )

    @property
    def adapter(self) -> dict[str, nn.Parameter]:
        """What travels: LoRA's weights, under peft's state-dict names."""
        return {name: p for name, p in self.flat.parameters.items() if not factors.is_private(name)}

    @property
    def causal(self) -> PreTrainedModel:
        """The Hugging Face model inside, adapters included."""
        return self.model.get_base_model()  # type: ignore[return-value]  # typed as nn.Module

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.causal.get_input_embeddings().weight.device  # type: ignore[return-value]
