"""The vocabulary head, only where a completion token is predicted, a few rows at a time.

The gradient with respect to the hidden states is made in the same pass as the log-probabilities
(d log p[t] / d h = W[t] - p W), so logits are never kept. Same idea as the fused linear losses of Liger.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

CHUNK_ROWS = 256
CHUNK_ENTRIES = 4 << 20  # of one buffer of logits: 16 MB


@dataclass(eq=False)
class Head:
    """A frozen linear head, or none: then `features` are logits already.

    Its two buffers of logits are kept between calls: fresh memory costs a page fault for every 4 KB.
    """

    linear: nn.Linear | None
    buffers: dict[int, Tensor] = field(default_factory=dict)

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
        """Slices of rows with their (rows, V) float32 log-probabilities, in a buffer that the next one reuses."""
        size = self._chunk(features.shape[1] if self.linear is None else self.linear.out_features)
        for start in range(0, len(features), size):
            rows = slice(start, min(start + size, len(features)))
            if self.linear is None:
                yield rows, features[rows].detach().log_softmax(1)
            else:
                yield rows, self._project(features[rows].detach())

    def _project(self, features: Tensor) -> Tensor:
        assert self.linear is not None
        weight, bias = self.linear.weight.detach(), self.linear.bias
        rows = len(features)
        if weight.dtype != torch.float32:
            logits = features @ weight.T if bias is None else torch.addmm(bias.detach(), features, weight.T)
            return torch.log_softmax(logits, 1, dtype=torch.float32)
        logits = self._buffer(0)[:rows]
        if bias is None:
            torch.mm(features, weight.T, out=logits)
        else:
            torch.addmm(bias.detach(), features, weight.T, out=logits)
        return torch.log_softmax(logits, 1, out=self._buffer(1)[:rows])

    def _buffer(self, which: int) -> Tensor:
        assert self.linear is not None
        if which not in self.buffers:
            vocabulary = self.linear.out_features
            self.buffers[which] = self.linear.weight.new_empty(self._chunk(vocabulary), vocabulary)
        return self.buffers[which]

    @staticmethod
    def _chunk(vocabulary: int) -> int:
        return max(1, min(CHUNK_ROWS, CHUNK_ENTRIES // vocabulary))


class _EagerGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, targets: Tensor, head: Head) -> Tensor:  # type: ignore[override]
        assert head.linear is not None
        weight = head.linear.weight.detach()
        out = torch.empty(len(features), dtype=torch.float32, device=features.device)
        gradient = torch.empty_like(features)
        for rows, logp in head.log_softmax(features):
            target = targets[rows, None]
            out[rows] = logp.gather(1, target)[:, 0]
            p = logp.exp_()
            p.scatter_add_(1, target, p.new_full((1, 1), -1.0).expand(len(p), 1))
            torch.mm(p.to(weight.dtype), weight, out=gradient[rows])
        ctx.save_for_backward(gradient)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient * -grad[:, None].to(gradient.dtype), None, None
