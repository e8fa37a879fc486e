"""Matrix products with frozen float32 weights, by oneDNN on processors where it is faster than torch's default.

torch calls MKL, which does not use the 512-bit units of AMD processors; there oneDNN was measured to be twice as fast.
On processors without AVX-512, and on Intel's with it, MKL is faster (docs/performance.md). The choice depends only on
the processor, so that a machine always computes the same bytes. The operator is that of torch.compile for linear
layers; a torch without it uses its own product.
"""

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


ENABLED = AVAILABLE and is_onednn_faster(
    CPUINFO.read_text() if CPUINFO.is_file() else "", torch.backends.cpu.get_cpu_capability()
)


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
