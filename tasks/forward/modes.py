"""Context managers that run the base as the frozen reference, or as the policy in local training."""

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
    """Run the frozen base: adapters and private parts are off, and no gradient is recorded."""
    with torch.no_grad(), base.model.disable_adapter(), base.private_parts.off():
        yield


@contextmanager
def training(
    base: Base, *, dropout: bool, seed: int, trains: Callable[[str], bool] = everything
) -> Iterator[None]:
    """Set the base up for local steps: LoRA dropout if `dropout`, gradient checkpointing if the base is configured for
    it, and no gradient for tensors for which `trains` is false.

    The model itself stays in evaluation mode, so that without dropout the policy computes what it computes outside.
    The global generators, from which dropout draws, are seeded by `seed` and restored on exit.
    """
    base.model.eval()
    base.flat.bind(trains)
    layers = [m for m in base.model.modules() if isinstance(m, GradientCheckpointingLayer)]
    forwards = [(layer, layer.__dict__.get("forward")) for layer in layers if layer.gradient_checkpointing]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if dropout:
            for layer in base.merged.layers.values():
                layer.lora_dropout.train()  # type: ignore[operator]  # a ModuleDict
        for layer, _ in forwards:
            layer.forward = partial(_checkpointed, layer, layer.forward)
        try:
            yield
        finally:
            for layer, forward in forwards:
                if forward is None:
                    del layer.forward
                else:  # an instance attribute, set by a hook of accelerate
                    layer.forward = forward
            base.model.eval()
            base.flat.bind()


def _checkpointed(
    layer: GradientCheckpointingLayer, forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Tensor | tuple[Tensor, ...]:  # Any: arguments differ between architectures
    """Checkpoint a layer as transformers does in training mode, which would also turn on the layer's own dropout."""
    return layer._gradient_checkpointing_func(partial(forward, **kwargs), *args)  # type: ignore[operator]  # set by gradient_checkpointing_enable
