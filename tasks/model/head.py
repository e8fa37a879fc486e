"""The vocabulary head, only where a completion token is predicted, a few rows at a time.

The gradient with respect to the hidden states is made in the same pass as the log-probabilities
(d log p[t] / d h = W[t] - p W), so logits are never kept. Same idea as the fused linear losses of Liger. A client's own
change of the head, s U^T, is added to the logits; U's gradient needs them a second time, on the way back.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tasks.model.linear import product
from tasks.model.private_parts import PrivateParts

CHUNK_ROWS = 128
CHUNK_ENTRIES = 8_000_000  # of logits: 32 MB, above which glibc's malloc gives memory back every time


@dataclass(frozen=True)
class Head:
    """A frozen linear head and the client's change of it, or none: then `features` are logits already."""

    linear: nn.Linear | None
    private_parts: PrivateParts | None = None

    def logps(self, features: Tensor, targets: Tensor) -> Tensor:
        """Log-probability of each target: features (R, F), targets (R,) -> (R,) float32, with gradient."""
        return self.scores(features, targets)[0]

    def scores(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """logps, and whether no token is likelier than the target, (R,) bool."""
        if self.linear is None:
            wanted = features.gather(1, targets.to(features.device)[:, None])[:, 0]
            return wanted - features.logsumexp(1), wanted >= features.detach().amax(1)
        device = self.linear.weight.device
        features = features.to(device)
        return _EagerGradient.apply(features, *self._change(features), targets.to(device), self)  # type: ignore[return-value]  # apply is untyped

    def logits(self, features: Tensor, targets: Tensor) -> Tensor:
        """Logits of a few tokens for each row: features (R, F), targets (R, k) -> (R, k) float32, with gradient.
        No other row of the head is read."""
        if self.linear is None:
            return features.gather(1, targets.to(features.device))
        weight, bias = self.linear.weight, self.linear.bias
        targets, features = targets.to(weight.device), features.to(weight.device)
        wanted = torch.einsum("rf,rkf->rk", features.float(), weight.detach()[targets].float())
        s, left = self._change(features)
        if s is not None and left is not None:
            wanted = wanted + torch.einsum("rf,rkf->rk", s, left[targets])
        return wanted if bias is None else wanted + bias.detach()[targets].float()

    def log_softmax(self, features: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Slices of rows with their (rows, V) float32 log-probabilities, without gradient."""
        for rows, logits in self.chunks(features, *self._change(features)):
            yield rows, torch.log_softmax(logits, 1)

    def _change(self, features: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """s (R, r) and U (V, r) of the client's change, if there is one."""
        change = self.private_parts.change(features) if self.private_parts and self.linear else None
        return change or (None, None)

    def chunks(
        self, features: Tensor, s: Tensor | None = None, left: Tensor | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Slices of rows with their (rows, V) float32 logits, plus s U^T, without gradient."""
        vocabulary = features.shape[1] if self.linear is None else self.linear.out_features
        size = max(1, min(CHUNK_ROWS, CHUNK_ENTRIES // vocabulary))
        for start in range(0, len(features), size):
            rows = slice(start, min(start + size, len(features)))
            part = features[rows].detach()
            logits = part if self.linear is None else _project(self.linear, part)
            if s is not None and left is not None:
                logits.addmm_(s[rows].detach(), left.detach().T)
            yield rows, logits


def _project(head: nn.Linear, features: Tensor) -> Tensor:
    bias = None if head.bias is None else head.bias.detach()
    return product(features.to(head.weight.dtype), head.weight.detach(), bias).float()


class _EagerGradient(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx, features: Tensor, s: Tensor | None, left: Tensor | None, targets: Tensor, head: Head
    ) -> tuple[Tensor, Tensor]:
        assert head.linear is not None
        weight = head.linear.weight.detach()
        out = torch.empty(len(features), dtype=torch.float32, device=features.device)
        best = torch.empty(len(features), dtype=torch.bool, device=features.device)
        gradient = torch.empty_like(features, dtype=weight.dtype) if ctx.needs_input_grad[0] else None
        of_s = torch.empty_like(s) if s is not None and ctx.needs_input_grad[1] else None
        for rows, logits in head.chunks(features, s, left):
            target = targets[rows, None]
            most, wanted = logits.amax(1), logits.gather(1, target)[:, 0]
            best[rows] = wanted >= most
            p = torch.softmax(logits, 1, out=logits)
            out[rows] = (
                wanted - most + p.amax(1).log()
            )  # log sum exp = most - log p(most), and p(most) >= 1/V
            if gradient is not None or of_s is not None:
                _less_target(p, target)
            if gradient is not None:
                gradient[rows] = product(p.to(weight.dtype), weight.T)
            if of_s is not None and left is not None:
                of_s[rows] = p @ left.detach()
        again = (features, s, left, targets) if ctx.needs_input_grad[2] else (None,) * 4
        ctx.save_for_backward(gradient, of_s, *again)
        ctx.head = head
        ctx.mark_non_differentiable(best)
        return out, best

    @staticmethod
    def backward(ctx, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gradient, of_s, features, s, left, targets = ctx.saved_tensors
        of_left = None
        if left is not None:
            of_left = torch.zeros_like(left)
            for rows, logits in ctx.head.chunks(features, s, left):
                p = torch.softmax(logits, 1, out=logits)
                _less_target(p, targets[rows, None])
                of_left.addmm_((p * grad[rows, None]).T, s[rows], alpha=-1)
        down = -grad[:, None]
        return (
            None if gradient is None else gradient * down.to(gradient.dtype),
            None if of_s is None else of_s * down,
            of_left,
            None,
            None,
        )


def _less_target(p: Tensor, target: Tensor) -> None:
    """p - 1[target], in place: minus the gradient of log p[target] by the logits."""
    p.scatter_add_(1, target, p.new_full((1, 1), -1.0).expand(len(p), 1))
