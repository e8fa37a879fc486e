"""Flat: trainable weights as views of a few flat tensors, and their gradients as views of others."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from core.factors import part_of
from tasks.base import everything

Block = tuple[str, torch.device]  # a part ("": the adapter) on a device


class Flat:
    """One float32 weight and one gradient tensor for each part and device (one device unless the model is split).

    Clipping computes one norm, and an optimiser step takes one kernel, for each of them. `parameters` maps names of a
    tree to the model's parameters.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.size = sum(p.numel() for p in parameters.values())
        self.blocks: dict[str, Block] = {n: (part_of(n), p.device) for n, p in parameters.items()}
        sizes = dict.fromkeys(self.blocks.values(), 0)
        for name, p in parameters.items():
            sizes[self.blocks[name]] += p.numel()
        self.weights = {block: nn.Parameter(torch.empty(n, device=block[1])) for block, n in sizes.items()}
        with torch.no_grad():
            for weight in self.weights.values():
                weight.grad = torch.zeros_like(weight)
            for name, view in self.split([weight.data for weight in self.weights.values()]).items():
                view.copy_(self.parameters[name])
                self.parameters[name].data = view
        self.bind()

    def bind(self, trains: Callable[[str], bool] = everything) -> None:
        """Make every parameter's gradient a view of the flat gradient again; another trainer may have replaced it.

        trains: whether the tensor of this name is trained; others require no gradient.
        """
        views, gradients = self.split([w.data for w in self.weights.values()]), self.split(self.gradients)
        for name, parameter in self.parameters.items():
            assert parameter.data_ptr() == views[name].data_ptr(), (
                "an adapter weight is no longer a view of the flat tensor"
            )
            parameter.requires_grad_(trains(name))
            parameter.grad = gradients[name]

    def zero_grad(self) -> None:
        for gradient in self.gradients:
            gradient.zero_()

    @property
    def gradients(self) -> list[Tensor]:
        return [weight.grad for weight in self.weights.values() if weight.grad is not None]

    def clip(self, max_norm: float) -> float:
        """Clip the norm of all gradients to `max_norm`, as torch does; 0 disables it. Returns the norm before."""
        norms = [gradient.norm() for gradient in self.gradients]
        norm = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
        if max_norm:
            scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
            for gradient in self.gradients:
                gradient.mul_(scale.to(gradient.device))
        return float(norm)

    def split(self, flats: Sequence[Tensor]) -> dict[str, Tensor]:
        """Views of flat tensors that are laid out as `weights`, by name and in the shape of each parameter."""
        remaining = dict(zip(self.weights, flats, strict=True))
        out: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            flat = remaining[self.blocks[name]]
            out[name] = flat[: parameter.numel()].view_as(parameter)
            remaining[self.blocks[name]] = flat[parameter.numel() :]
        return out
