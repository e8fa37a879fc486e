"""Tree: named float32 CPU tensors, the only thing a federation averages."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from core.errors import TreeMismatch

Tree = dict[str, Tensor]


def same_layout(a: Mapping[str, Tensor], b: Mapping[str, Tensor], *, where: str = "tree") -> None:
    """Raise TreeMismatch unless a and b have the same names and shapes."""
    if missing := sorted(a.keys() ^ b.keys()):
        raise TreeMismatch(f"{where}: names differ, first {missing[0]!r} ({len(missing)} in all)")
    for name, tensor in a.items():
        if tensor.shape != b[name].shape:
            got, want = tuple(b[name].shape), tuple(tensor.shape)
            raise TreeMismatch(f"{where}: {name!r} has shape {got}, expected {want}")


def zip_map(f: Callable[..., Tensor], first: Mapping[str, Tensor], *rest: Mapping[str, Tensor]) -> Tree:
    """f applied to each name of `first` and the same name of the others; raises TreeMismatch."""
    for other in rest:
        same_layout(first, other)
    return {name: f(tensor, *(r[name] for r in rest)) for name, tensor in first.items()}


def add(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tree:
    return zip_map(torch.add, a, b)


def sub(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tree:
    return zip_map(torch.sub, a, b)


def scale(a: Mapping[str, Tensor], factor: float) -> Tree:
    return zip_map(lambda t: t * factor, a)


def mean(trees: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tree:
    """sum_k w_k t_k / sum_k w_k, summed in the order given (floating-point addition is not associative)."""
    assert len(trees) == len(weights) > 0, (len(trees), len(weights))
    total = float(sum(weights))
    assert total > 0, f"weights must have a positive sum, got {weights}"
    out = scale(trees[0], weights[0] / total)
    for tree, weight in zip(trees[1:], weights[1:], strict=True):
        same_layout(out, tree)
        for name, tensor in tree.items():
            out[name].add_(tensor, alpha=weight / total)
    return out


def norm(a: Mapping[str, Tensor]) -> float:
    """The L2 norm over all entries of all tensors."""
    return float(torch.stack([t.detach().double().square().sum() for t in a.values()]).sum().sqrt())


def is_finite(a: Mapping[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in a.values())
