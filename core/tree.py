"""Tree: named float32 CPU tensors, the only thing a federation averages."""

from collections.abc import Callable, Mapping, Sequence
from math import prod

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
    """Apply f to the tensors of equal name in all trees. Raises TreeMismatch if their layouts differ."""
    for other in rest:
        same_layout(first, other)
    return {name: f(tensor, *(r[name] for r in rest)) for name, tensor in first.items()}


def add(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tree:
    return zip_map(torch.add, a, b)


def sub(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tree:
    return zip_map(torch.sub, a, b)


def scale(a: Mapping[str, Tensor], factor: float) -> Tree:
    return zip_map(lambda t: t * factor, a)


def norm(a: Mapping[str, Tensor]) -> float:
    """Return the L2 norm over all entries of all tensors; not finite if an entry is not."""
    return float(torch.linalg.vector_norm(flat(a))) if a else 0.0


def flat(tree: Mapping[str, Tensor]) -> Tensor:
    """Return all entries as one 1-d tensor in the tree's order; a view if the tensors are adjacent in memory."""
    tensors = [t.detach() for t in tree.values()]
    if not tensors:
        return torch.zeros(0)
    at, storage = tensors[0].data_ptr(), tensors[0].untyped_storage().data_ptr()
    for t in tensors:
        if (t.data_ptr(), t.untyped_storage().data_ptr(), t.is_contiguous()) != (at, storage, True):
            return torch.cat([t.reshape(-1) for t in tensors])
        at += t.numel() * t.element_size()
    return tensors[0].as_strided((sum(t.numel() for t in tensors),), (1,))


def unflat(numbers: Tensor, shapes: Mapping[str, Sequence[int]]) -> Tree:
    """Return views of a 1-d tensor under names and shapes; the inverse of `flat`. Raises TreeMismatch."""
    if not all(type(n) is int and n >= 0 for shape in shapes.values() for n in shape):
        raise TreeMismatch("a shape must be a list of non-negative integers")
    sizes = [prod(shape) for shape in shapes.values()]
    if numbers.dim() != 1 or len(numbers) != sum(sizes):
        raise TreeMismatch(f"got {numbers.numel()} numbers, the layout has {sum(sizes)}")
    parts = numbers.split(sizes) if sizes else ()
    return {name: part.view(*shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
