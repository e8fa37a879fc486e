"""Head: the vocabulary head, applied only where a completion token is predicted, a chunk of rows at a time.

The gradient with respect to the hidden states is computed in the same pass as the log-probabilities
(d log p[t] / d h = W[t] - p W), so that logits are never stored, as in the fused linear losses of Liger. A client's
private change of the head, s U^T, is added to the logits; the backward pass computes them again for U's gradient.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tasks.model.linear import product
from tasks.model.private_parts import PrivateParts

CHUNK_ROWS = 128
CHUNK_ENTRIES = 8_000_000  # of logits: 32 MB; glibc's malloc returns larger blocks to the system every time


@dataclass(frozen=True)
class Head:
    """A frozen linear head with the client's private change. Without a head (None), `features` are logits."""

    linear: nn.Linear | None
    private_parts: PrivateParts | None = None

    def logps(self, features: Tensor, targets: Tensor) -> Tensor:
        """Log-probability of each target: features (R, F), targets (R,) -> (R,) float32, with gradient."""
        return self.scores(features, targets)[0]

    def scores(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """logps, and whether the target is a most likely token, (R,) bool."""
        if self.linear is None:
            target_logits = features.gather(1, targets.to(features.device)[:, None])[:, 0]
            return target_logits - features.logsumexp(1), target_logits >= features.detach().amax(1)
        device = self.linear.weight.device
        features = features.to(device)
        return _EagerGradient.apply(features, *self._change(features), targets.to(device), self)  # type: ignore[return-value]  # apply is untyped

    def logits(self, features: Tensor, targets: Tensor) -> Tensor:
        """Logits of k tokens for each row: features (R, F), targets (R, k) -> (R, k) float32, with gradient.

        Only these tokens' rows of the head are read.
        """
        if self.linear is None:
            return features.gather(1, targets.to(features.device))
        weight, bias = self.linear.weight, self.linear.bias
        targets, features = targets.to(weight.device), features.to(weight.device)
        logits = torch.einsum("rf,rkf->rk", features.float(), weight.detach()[targets].float())
        s, u = self._change(features)
        if s is not None and u is not None:
            logits = logits + torch.einsum("rf,rkf->rk", s, u[targets])
        return logits if bias is None else logits + bias.detach()[targets].float()

    def log_softmax(self, features: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Slices of rows with their (rows, V) float32 log-probabilities, without gradient."""
        for rows, logits in self.chunks(features, *self._change(features)):
            yield rows, torch.log_softmax(logits, 1)

    def _change(self, features: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """s (R, r) and U (V, r) of the client's change; (None, None) without one."""
        change = self.private_parts.change(features) if self.private_parts and self.linear else None
        return change or (None, None)

    def chunks(
        self, features: Tensor, s: Tensor | None = None, u: Tensor | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Slices of rows with their (rows, V) float32 logits, plus s U^T, without gradient."""
        vocabulary = features.shape[1] if self.linear is None else self.linear.out_features
        size = max(1, min(CHUNK_ROWS, CHUNK_ENTRIES // vocabulary))
        for start in range(0, len(features), size):
            rows = slice(start, min(start + size, len(features)))
            part = features[rows].detach()
            logits = part if self.linear is None else _project(self.linear, part)
            if s is not None and u is not None:
                logits.addmm_(s[rows].detach(), u.detach().T)
            yield rows, logits


def _project(head: nn.Linear, features: Tensor) -> Tensor:
    bias = None if head.bias is None else head.bias.detach()
    return product(features.to(head.weight.dtype), head.weight.detach(), bias).float()


class _EagerGradient(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx, features: Tensor, s: Tensor | None, u: Tensor | None, targets: Tensor, head: Head
    ) -> tuple[Tensor, Tensor]:
        assert head.linear is not None
        weight = head.linear.weight.detach()
        out = torch.empty(len(features), dtype=torch.float32, device=features.device)
        best = torch.empty(len(features), dtype=torch.bool, device=features.device)
        gradient = torch.empty_like(features, dtype=weight.dtype) if ctx.needs_input_grad[0] else None
        grad_s = torch.empty_like(s) if s is not None and ctx.needs_input_grad[1] else None
        for rows, logits in head.chunks(features, s, u):
            target = targets[rows, None]
            largest, target_logits = logits.amax(1), logits.gather(1, target)[:, 0]
            best[rows] = target_logits >= largest
            p = torch.softmax(logits, 1, out=logits)
            # logsumexp = largest - log p(largest); the logarithm is safe, since p(largest) >= 1/V
            out[rows] = target_logits - largest + p.amax(1).log()
            if gradient is not None or grad_s is not None:
                _subtract_one_hot(p, target)
            if gradient is not None:
                gradient[rows] = product(p.to(weight.dtype), weight.T)
            if grad_s is not None and u is not None:
                grad_s[rows] = p @ u.detach()
        saved = (features, s, u, targets) if ctx.needs_input_grad[2] else (None,) * 4
        ctx.save_for_backward(gradient, grad_s, *saved)
        ctx.head = head
        ctx.mark_non_differentiable(best)
        return out, best

    @staticmethod
    def backward(ctx, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gradient, grad_s, features, s, u, targets = ctx.saved_tensors
        grad_u = None
        if u is not None:
            grad_u = torch.zeros_like(u)
            for rows, logits in ctx.head.chunks(features, s, u):
                p = torch.softmax(logits, 1, out=logits)
                _subtract_one_hot(p, targets[rows, None])
                grad_u.addmm_((p * grad[rows, None]).T, s[rows], alpha=-1)
        scale = -grad[:, None]
        return (
            None if gradient is None else gradient * scale.to(gradient.dtype),
            None if grad_s is None else grad_s * scale,
            grad_u,
            None,
            None,
        )


def _subtract_one_hot(p: Tensor, target: Tensor) -> None:
    """p - 1[target], in place: the negative gradient of log p[target] with respect to the logits."""
    p.scatter_add_(1, target, p.new_full((1, 1), -1.0).expand(len(p), 1))
