"""Matrix products with frozen float32 weights, by oneDNN on processors where it is faster than torch's default.

torch calls MKL, which does not use the 512-bit units of AMD processors; there oneDNN was measured to be twice as fast.
On processors without AVX-512, and on Intel's with it, MKL is faster (docs/performance.md). The choice depends only on
the processor, so that a machine always computes the same bytes. The operator is that of torch.compile for linear
layers; a torch without it uses its own product.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

# Multiply-adds; oneDNN prepares a kernel for each new shape, which takes longer than smaller products.
LEAST = 1 << 25
AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
CPUINFO = Path("/proc/cpuinfo")


def is_onednn_faster(cpuinfo: str, capability: str) -> bool:
    """Whether oneDNN is faster than MKL.

    Args:
        cpuinfo: contents of /proc/cpuinfo.
        capability: the vector instructions that torch uses.
    """
    vendors = (
        line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("vendor_id")
    )
    return next(vendors, "") == "AuthenticAMD" and capability.startswith("AVX512")


def agrees(operator: Callable[..., Tensor]) -> bool:
    """Whether an operator with the arguments of mkldnn._linear_pointwise computes what torch's linear computes.

    It is private to torch, so its meaning may change with a release.
    """
    x, weight, bias = (torch.arange(n, dtype=torch.float32).sin() for n in (6 * 40, 40 * 24, 24))
    x = x.view(6, 40)
    for w in (weight.view(24, 40), weight.view(40, 24).T):
        for b in (bias, None):
            try:
                result = operator(x, w, b, "none", [], "")
            except (RuntimeError, TypeError):
                return False
            if not torch.allclose(result, linear(x, w, b), rtol=1e-5, atol=1e-5):
                return False
    return True


def _enabled() -> bool:
    """Whether products go through oneDNN in this process: it is there, faster on this processor, and right."""
    cpuinfo = CPUINFO.read_text() if CPUINFO.is_file() else ""
    if not AVAILABLE or not is_onednn_faster(cpuinfo, torch.backends.cpu.get_cpu_capability()):
        return False
    return agrees(torch.ops.mkldnn._linear_pointwise)


ENABLED = _enabled()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b without autograd: x (..., I), weight (O, I) in any memory order, bias (O,) -> (..., O)."""
    if x.numel() * len(weight) < LEAST or not _covered(x, weight):
        return linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def use_onednn(model: nn.Module) -> None:
    """Make all plain linear layers with frozen weights compute by `product`, where oneDNN is faster."""
    if not ENABLED:
        return
    for module in model.modules():
        if type(module) is nn.Linear and not any(p.requires_grad for p in module.parameters()):
            module.__class__ = FrozenLinear


class FrozenLinear(nn.Linear):
    """A linear layer with frozen weights: gradients pass through it to its input."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # nn.Linear's name
        return _Product.apply(input, self.weight, self.bias)  # type: ignore[return-value]  # apply is untyped


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        return product(grad, weight.T), None, None


def _covered(x: Tensor, weight: Tensor) -> bool:
    return ENABLED and x.is_cpu and x.dtype == weight.dtype == torch.float32
