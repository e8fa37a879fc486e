"""What a model does between its last hidden states and its logits, besides its linear head."""

from typing import Any

import torch
from torch import Tensor, nn

from tasks.forward.packing import Fork
from tasks.model.base import Base


def logit_scale(base: Base, sequence: Fork) -> float | str:
    """The factor by which the model multiplies what its head gives; or why it does more than that.

    Tried on made-up logits, large and small, put in the head's place, so that no weight decides what is seen.
    """
    causal, head = base.causal, base.causal.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    prompt, (completion,) = sequence
    ids = torch.tensor([prompt + completion], device=base.device)
    states: list[Tensor] = []
    made_up = torch.linspace(-100.0, 100.0, head.out_features)

    def instead(_: nn.Module, inputs: tuple[Any, ...], logits: Tensor) -> Tensor:
        states.append(inputs[0])
        return made_up.to(logits).expand_as(logits)

    hook = head.register_forward_hook(instead)
    try:
        logits = causal(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    body = causal.base_model(input_ids=ids, use_cache=False)
    if len(states) != 1 or not torch.equal(states[0], body[0]):
        return "its head reads something else than the last hidden states"
    given, came = made_up.to(head.weight.dtype).double(), logits[0, -1].cpu().double()
    scale = float(came[-1] / given[-1])
    if not torch.allclose(came, scale * given, rtol=2 * torch.finfo(head.weight.dtype).eps, atol=0.0):
        return "it changes its logits after the head"
    return scale if scale == 1.0 or head.bias is None else "it scales logits with a bias"
