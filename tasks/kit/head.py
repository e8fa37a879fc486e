"""The vocabulary head, only where a completion token is predicted, a few rows at a time.

The gradient with respect to the hidden states is made in the same pass as the log-probabilities
(d log p[t] / d h = W[t] - p W), so logits are never kept. Same idea as the fused linear losses of Liger.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tasks.kit.linear import product

CHUNK_ROWS = 128
CHUNK_ENTRIES = 8_000_000  # of logits: 32 MB, above which glibc's malloc gives memory back every time


@dataclass(frozen=True)
class Head:
    """A frozen linear head, or none: then `features` are logits already."""

    linear: nn.Linear | None

    def logps(self, features: Tensor, targets: Tensor) -> Tensor:
        """Log-probability of each target: features (R, F), targets (R,) -> (R,) float32, with gradient."""
        return self.scores(features, targets)[0]

    def scores(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """logps, and whether no token is likelier than the target, (R,) bool."""
        if self.linear is None:
            wanted = features.gather(1, targets.to(features.device)[:, None])[:, 0]
            return wanted - features.logsumexp(1), wanted >= features.detach().amax(1)
        device = self.linear.weight.device
        return _EagerGradient.apply(features.to(device), targets.to(device), self)  # type: ignore[return-value]  # apply is untyped

    def logits(self, features: Tensor, targets: Tensor) -> Tensor:
        """Logits of a few tokens for each row: features (R, F), targets (R, k) -> (R, k) float32, with gradient.
        No other row of the head is read."""
        if self.linear is None:
            return features.gather(1, targets.to(features.device))
        weight, bias = self.linear.weight, self.linear.bias
        targets, features = targets.to(weight.device), features.to(weight.device)
        wanted = torch.einsum("rf,rkf->rk", features.float(), weight.detach()[targets].float())
        return wanted if bias is None else wanted + bias.detach()[targets].float()

    def log_softmax(self, features: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Slices of rows with their (rows, V) float32 log-probabilities, without gradient."""
        for rows, logits in self.chunks(features):
            yield rows, torch.log_softmax(logits, 1)

    def chunks(self, features: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Slices of rows with their (rows, V) float32 logits, without gradient."""
        vocabulary = features.shape[1] if self.linear is None else self.linear.out_features
        size = max(1, min(CHUNK_ROWS, CHUNK_ENTRIES // vocabulary))
        for start in range(0, len(features), size):
            rows = slice(start, min(start + size, len(features)))
            part = features[rows].detach()
            yield rows, part if self.linear is None else _project(self.linear, part)


def _project(head: nn.Linear, features: Tensor) -> Tensor:
    bias = None if head.bias is None else head.bias.detach()
    return product(features.to(head.weight.dtype), head.weight.detach(), bias).float()


class _EagerGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, targets: Tensor, head: Head) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        assert head.linear is not None
        weight = head.linear.weight.detach()
        out = torch.empty(len(features), dtype=torch.float32, device=features.device)
        best = torch.empty(len(features), dtype=torch.bool, device=features.device)
        gradient = torch.empty_like(features, dtype=weight.dtype) if ctx.needs_input_grad[0] else None
        for rows, logits in head.chunks(features):
            target = targets[rows, None]
            most, wanted = logits.amax(1), logits.gather(1, target)[:, 0]
            best[rows] = wanted >= most
            p = torch.softmax(logits, 1, out=logits)
            out[rows] = (
                wanted - most + p.amax(1).log()
            )  # log sum exp = most - log p(most), and p(most) >= 1/V
            if gradient is not None:
                p.scatter_add_(1, target, p.new_full((1, 1), -1.0).expand(len(p), 1))
                gradient[rows] = product(p.to(weight.dtype), weight.T)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(best)
        return out, best

    @staticmethod
    def backward(ctx, grad: Tensor, _: None) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient * -grad[:, None].to(gradient.dtype), None, None
