"""Flat: all LoRA weights as views of one tensor, and their gradients as views of another."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Flat:
    """One float32 weight tensor and one gradient tensor per device (one device unless the model is split).

    Clipping is one norm, an optimiser step one kernel. `parameters` maps tree names to the model's parameters.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.size = sum(p.numel() for p in parameters.values())
        sizes: dict[torch.device, int] = {}
        for p in parameters.values():
            sizes[p.device] = sizes.get(p.device, 0) + p.numel()
        self.weights = {device: nn.Parameter(torch.empty(n, device=device)) for device, n in sizes.items()}
        with torch.no_grad():
            for weight in self.weights.values():
                weight.grad = torch.zeros_like(weight)
            for parameter, view, _ in self._views():
                view.copy_(parameter)
                parameter.data = view
        self.bind()

    def bind(self) -> None:
        """Point every parameter's gradient at its place; another trainer may have dropped them."""
        for parameter, view, gradient in self._views():
            assert parameter.data_ptr() == view.data_ptr(), (
                "an adapter weight was moved out of the flat tensor"
            )
            parameter.requires_grad_(True)
            parameter.grad = gradient

    def zero_grad(self) -> None:
        for gradient in self.gradients:
            gradient.zero_()

    @property
    def gradients(self) -> list[Tensor]:
        return [weight.grad for weight in self.weights.values() if weight.grad is not None]

    def clip(self, most: float) -> float:
        """The norm of all gradients; scaled down to `most` where it is larger (torch's rule), 0 for never."""
        norms = [gradient.norm() for gradient in self.gradients]
        norm = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
        if most:
            scale = (most / (norm + 1e-6)).clamp(max=1.0)
            for gradient in self.gradients:
                gradient.mul_(scale.to(gradient.device))
        return float(norm)

    def _views(self) -> Iterator[tuple[nn.Parameter, Tensor, Tensor]]:
        start = dict.fromkeys(self.weights, 0)
        for parameter in self.parameters.values():
            weight = self.weights[parameter.device]
            assert weight.grad is not None
            place = slice(start[parameter.device], start[parameter.device] + parameter.numel())
            yield parameter, weight.data[place].view_as(parameter), weight.grad[place].view_as(parameter)
            start[parameter.device] = place.stop
