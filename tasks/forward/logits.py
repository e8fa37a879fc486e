"""Probe what a model computes between its last hidden states and its logits, in addition to its linear head."""

from typing import Any

import torch
from torch import Tensor, nn

from tasks.forward.packing import Fork
from tasks.model.base import Base


def logit_scale(base: Base, sequence: Fork) -> float | str:
    """The factor by which the model multiplies the output of its head, or the reason why it is not a plain factor.

    The output of the head is replaced by artificial logits from -100 to 100, so that the result does not depend on
    the weights.
    """
    causal, head = base.causal, base.causal.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    prompt, (completion,) = sequence
    ids = torch.tensor([prompt + completion], device=base.device)
    states: list[Tensor] = []
    artificial = torch.linspace(-100.0, 100.0, head.out_features)

    def replace_logits(_: nn.Module, inputs: tuple[Any, ...], logits: Tensor) -> Tensor:
        states.append(inputs[0])
        return artificial.to(logits).expand_as(logits)

    hook = head.register_forward_hook(replace_logits)
    try:
        logits = causal(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    body = causal.base_model(input_ids=ids, use_cache=False)
    if len(states) != 1 or not torch.equal(states[0], body[0]):
        return "its head does not read the last hidden states"
    inserted, returned = artificial.to(head.weight.dtype).double(), logits[0, -1].cpu().double()
    scale = float(returned[-1] / inserted[-1])
    if not torch.allclose(returned, scale * inserted, rtol=2 * torch.finfo(head.weight.dtype).eps, atol=0.0):
        return "it changes its logits after the head"
    return scale if scale == 1.0 or head.bias is None else "it scales logits with a bias"
