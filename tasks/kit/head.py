"""The vocabulary head, only where a completion token is predicted, a few rows at a time.

The gradient with respect to the hidden states is made in the same pass as the log-probabilities
(d log p[t] / d h = W[t] - p W), so logits are never kept. Same idea as the fused linear losses of Liger.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CHUNK_ROWS = 256
CHUNK_ENTRIES = 8 << 20  # of the buffer of logits: 32 MB


@dataclass(eq=False)
class Head:
    """A frozen linear head, or none: then `features` are logits already.

    Its buffer of logits is kept between calls: fresh memory costs a page fault for every 4 KB.
    """

    linear: nn.Linear | None
    buffer: Tensor | None = None

    def logps(self, features: Tensor, targets: Tensor) -> Tensor:
        """Log-probability of each target: features (R, F), targets (R,) -> (R,) float32, with gradient."""
        targets = targets.to(features.device)
        if self.linear is None:
            return features.log_softmax(1).gather(1, targets[:, None])[:, 0]
        features, targets = features.to(self.linear.weight.device), targets.to(self.linear.weight.device)
        if torch.is_grad_enabled() and features.requires_grad:
            return _EagerGradient.apply(features, targets, self)  # type: ignore[return-value]  # apply is untyped
        return torch.cat([p.gather(1, targets[rows, None])[:, 0] for rows, p in self.log_softmax(features)])

    def log_softmax(self, features: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Slices of rows with their (rows, V) float32 log-probabilities, without gradient."""
        for rows, logits in self.chunks(features):
            yield rows, torch.log_softmax(logits, 1)

    def chunks(self, features: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Slices of rows with their (rows, V) float32 logits, without gradient, in a buffer that the next reuses."""
        vocabulary = features.shape[1] if self.linear is None else self.linear.out_features
        size = max(1, min(CHUNK_ROWS, CHUNK_ENTRIES // vocabulary))
        for start in range(0, len(features), size):
            rows = slice(start, min(start + size, len(features)))
            part = features[rows].detach()
            yield rows, part if self.linear is None else self._project(part, size)

    def _project(self, features: Tensor, size: int) -> Tensor:
        assert self.linear is not None
        weight, bias = self.linear.weight.detach(), self.linear.bias
        if weight.dtype != torch.float32:
            return nn.functional.linear(features.to(weight.dtype), weight, bias).float()
        if self.buffer is None:
            self.buffer = weight.new_empty(size, len(weight))
        logits = torch.mm(features, weight.T, out=self.buffer[: len(features)])
        return logits if bias is None else logits.add_(bias.detach())


class _EagerGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, targets: Tensor, head: Head) -> Tensor:  # type: ignore[override]
        assert head.linear is not None
        weight = head.linear.weight.detach()
        out = torch.empty(len(features), dtype=torch.float32, device=features.device)
        gradient = torch.empty_like(features, dtype=weight.dtype)
        for rows, logits in head.chunks(features):
            target = targets[rows, None]
            most, wanted = logits.amax(1), logits.gather(1, target)[:, 0]
            p = torch.softmax(logits, 1, out=logits)
            out[rows] = (
                wanted - most + p.amax(1).log()
            )  # log sum exp = most - log p(most), and p(most) >= 1/V
            p.scatter_add_(1, target, p.new_full((1, 1), -1.0).expand(len(p), 1))
            torch.mm(p.to(weight.dtype), weight, out=gradient[rows])
        ctx.save_for_backward(gradient)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient * -grad[:, None].to(gradient.dtype), None, None
