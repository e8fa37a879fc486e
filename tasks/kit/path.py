"""How a base computes: packed forks where a trial shows that they give what the model gives, else padded batches."""

import logging
from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

from tasks.kit import attention
from tasks.kit.base_model import Base
from tasks.kit.head import Head
from tasks.kit.logprobs import completion_logps

log = logging.getLogger(__name__)


def choose_path(base: Base) -> None:
    """Packed forks where a trial shows that they compute what the model computes, else padded batches."""
    causal = base.causal
    usual = causal.config._attn_implementation or "eager"
    reason = _obstacle(causal) or _trial(base)
    if reason:
        base.packed, base.head = False, Head(None)
        causal.set_attn_implementation(usual)
        log.warning("%s runs on padded batches with full logits: %s", type(causal).__name__, reason)


def _obstacle(causal: PreTrainedModel) -> str:
    """Why a model cannot be packed, as far as its parts say; "" for nothing."""
    head = causal.get_output_embeddings()
    if type(head) is not nn.Linear or any(p.requires_grad for p in head.parameters()):
        return "its head is not a plain frozen linear layer"
    chunk = causal.config.get_text_config().to_dict().get("attention_chunk_size")
    return f"it attends in chunks of {chunk}" if chunk else ""


@torch.no_grad()
def _trial(base: Base) -> str:
    """Set the base up for packed forks and compare with the padded path; why it failed, or ""."""
    causal = base.causal
    vocabulary = causal.config.get_text_config().vocab_size
    tokens = iter((7 * i + i * i // 3) % vocabulary for i in range(1, 1000))  # arbitrary
    shapes = [(5, (4, 6)), (3, (1, 7, 2))]
    forks = [(_take(tokens, stem), tuple(_take(tokens, n) for n in branches)) for stem, branches in shapes]
    want = completion_logps(base, forks)
    base.packed, base.head = True, Head(causal.get_output_embeddings(), base.personal)
    try:
        causal.set_attn_implementation(attention.NAME)
        got = completion_logps(base, forks)
    except (NotImplementedError, TypeError, ValueError, RuntimeError, AttributeError) as failure:
        return f"a trial failed with {type(failure).__name__}"
    error = float((got - want).abs().max() / want.abs().max())
    return (
        "" if error < (1e-3 if causal.dtype == torch.float32 else 3e-2) else f"a trial was off by {error:.0e}"
    )


def _take(tokens: Iterator[int], count: int) -> tuple[int, ...]:
    return tuple(next(tokens) for _ in range(count))
