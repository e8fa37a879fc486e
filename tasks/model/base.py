"""Base: the frozen base model with one LoRA adapter; tasks/forward/setup.py loads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core import factors
from tasks.model.flat import Flat
from tasks.model.head import Head
from tasks.model.merged_factors import MergedFactors
from tasks.model.private_parts import PrivateParts

if TYPE_CHECKING:  # at run time, quantized.py must first decide whether peft can import bitsandbytes
    from peft import PeftModel


@dataclass(eq=False)
class Base:
    """A frozen base model with one LoRA adapter, and how it is run; loaded once per process.

    The model is in evaluation mode: preference tasks train without dropout, as in TRL. `training()` turns on the
    adapter's dropout for sft.

    Attributes:
        model: the base model with its adapter, as peft wraps it.
        fingerprint: digest of the base model (tasks/model/fingerprint.py).
        numerics: dtype and quantization; cached values depend on these and on the fingerprint.
        flat: weights of the adapter and, under names of their own, of the private parts; float32.
        private_parts: the current client's private parts; no effect if the task has none.
        merged: the product merged in earlier rounds (lora.aggregation = fedex | flora); not part of the reference.
        rank: rank of the current adapter; rows of A and columns of B above it are zero and stay zero.
        head: computes log-probabilities from hidden states (packed) or from logits (padded).
        packed: packed forks if true, else padded batches with full logits.
        path_reason: why the base is not packed; "" if it is.
        logit_scale: factor by which a packed model multiplies the logits of its head.
        unbatched_above: longer sequences (in tokens) are run one by one, since results depend on the length of the
            batch; None for no limit.
    """

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    numerics: str
    flat: Flat
    private_parts: PrivateParts
    merged: MergedFactors
    rank: int
    head: Head
    packed: bool
    path_reason: str = ""
    logit_scale: float = 1.0
    unbatched_above: int | None = None

    @property
    def adapter(self) -> dict[str, nn.Parameter]:
        """LoRA's weights under peft's state-dict names, without private parts."""
        return {name: p for name, p in self.flat.parameters.items() if not factors.is_private(name)}

    @property
    def causal(self) -> PreTrainedModel:
        """The Hugging Face model inside, adapters included."""
        return self.model.get_base_model()  # type: ignore[return-value]  # typed as nn.Module

    @property
    def device(self) -> torch.device:
        """The device of the input embeddings, which takes token ids."""
        return self.causal.get_input_embeddings().weight.device  # type: ignore[return-value]
