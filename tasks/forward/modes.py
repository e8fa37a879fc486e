"""How the base is run: as the frozen reference, and as the policy in a local step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from tasks.base import everything
from tasks.model.base import Base


@contextmanager
def reference(base: Base) -> Iterator[None]:
    """Inside, the model is the frozen base: adapters and private parts off, no gradient."""
    with torch.no_grad(), base.model.disable_adapter(), base.private_parts.off():
        yield


@contextmanager
def training(
    base: Base, *, dropout: bool, seed: int, trains: Callable[[str], bool] = everything
) -> Iterator[None]:
    """Inside, the base is set up for local steps: LoRA dropout if asked for, checkpointing if configured,
    no gradient for the tensors that do not train.

    The model itself stays in evaluation mode: without dropout the policy computes what it computes outside.
    The global generators, from which dropout draws, are seeded inside and restored after.
    """
    base.model.eval()
    base.flat.bind(trains)
    layers = [m for m in base.model.modules() if isinstance(m, GradientCheckpointingLayer)]
    forwards = [(layer, layer.__dict__.get("forward")) for layer in layers if layer.gradient_checkpointing]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if dropout:
            for layer in base.beside.layers.values():
                layer.lora_dropout.train()  # type: ignore[operator]  # a ModuleDict
        for layer, _ in forwards:
            layer.forward = partial(_checkpointed, layer, layer.forward)
        try:
            yield
        finally:
            for layer, forward in forwards:
                if forward is None:
                    del layer.forward
                else:  # a hook of accelerate's
                    layer.forward = forward
            base.model.eval()
            base.flat.bind()


def _checkpointed(
    layer: GradientCheckpointingLayer, forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Tensor | tuple[Tensor, ...]:
    # Any: each architecture's own arguments
    """What transformers does for a layer in training mode, which would turn the layer's own dropout on as well."""
    return layer._gradient_checkpointing_func(partial(forward, **kwargs), *args)  # type: ignore[operator]  # set by gradient_checkpointing_enable
