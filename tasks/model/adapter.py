"""Adapters as trees: in and out of a base, and onto disk in peft's format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from core import factors
from core.errors import TreeMismatch
from core.tree import Tree, same_layout
from tasks.model.attach import config_to_load
from tasks.model.base import Base


def initial_adapter(base: Base, seed: int, adapter: str = "global") -> Tree:
    """LoRA's start under this seed, at the full rank."""
    return factors.first(base.adapter, seed, adapter)


def get_adapter(base: Base) -> Tree:
    """A float32 copy on the CPU at the rank in use, under peft's state-dict names."""
    return _copied(_places(base, base.rank))


def get_private(base: Base) -> Tree:
    """The same of the client's own parts: what never leaves it."""
    return _copied(base.private_parts.tensors)


def set_adapter(base: Base, tree: Mapping[str, Tensor], merged: Mapping[str, Tensor] | None = None) -> None:
    """Copy `tree` into the adapter, and put the frozen factors `merged` beside it; None takes away what was there.

    A tree of a smaller rank r_k trains as that: above it A and B are zero, where no gradient reaches either, and
    the scale is alpha / r_k. Private parts that the tree lacks are zero, as if they were not there.
    TreeMismatch on other names or shapes.
    """
    private = {n: t for n, t in tree.items() if factors.is_private(n)}
    tree = {n: t for n, t in tree.items() if n not in private}
    rank = _rank(base, tree)
    places = _places(base, rank)
    same_layout(places, tree, where="adapter")
    base.beside.put(merged or {})
    base.private_parts.put(private)
    with torch.no_grad():
        if rank < base.rank:
            for parameter in base.adapter.values():
                parameter.zero_()
        for name, place in places.items():
            place.copy_(tree[name])
    if rank != base.rank:
        alpha = _peft(base)["lora_alpha"]
        for layer in base.beside.layers.values():
            layer.scaling["default"] = alpha / rank  # type: ignore[index]  # a dict of peft's
        base.rank = rank


def is_untouched(base: Base) -> bool:
    """Whether nothing was learned: every B is zero, nothing is merged or the client's own, so policy and reference are
    one function."""
    b = (p for name, p in base.adapter.items() if factors.is_b(name))
    return not base.beside.factors and not base.private_parts.moves_policy() and not any(p.any() for p in b)


def save_adapter(
    base: Base,
    tree: Mapping[str, Tensor],
    folder: Path,
    *,
    base_name: str,
    merged: Mapping[str, Tensor] | None = None,
) -> None:
    """A folder that PeftModel.from_pretrained loads on top of the model called `base_name`.

    With `merged` it is one LoRA of rank r + R and scale 1: A over the merged A, s B beside the merged B.
    """
    rank = _rank(base, tree)
    same_layout(_places(base, rank), tree, where="adapter")
    folder.mkdir(parents=True, exist_ok=True)
    alpha = _peft(base)["lora_alpha"]
    if merged:
        tree = _joined(tree, merged, alpha / rank)
        rank = alpha = factors.rank_of(tree)
    config_to_load(base.model, rank, alpha, public_name(base_name)).save_pretrained(str(folder))
    tensors = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tree.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def public_name(model: str) -> str:
    """A model's name for others to read: of a local folder its own name, without the path to it."""
    path = Path(model).expanduser()
    return path.name if path.is_absolute() or path.is_dir() else model


def _peft(base: Base) -> dict[str, Any]:
    """peft's configuration of the adapter. Any: it has fields of every kind."""
    return base.model.peft_config["default"].to_dict()


def _rank(base: Base, tree: Mapping[str, Tensor]) -> int:
    """The rank of a tree, at most the base's. The A of fused experts has as many rows for each of them."""
    most, adapter = _peft(base)["r"], base.adapter
    ranks = [len(a) * most // len(adapter[n]) for n, a in tree.items() if factors.is_a(n) and n in adapter]
    return min(max(ranks, default=most), most)


def _places(base: Base, rank: int) -> Mapping[str, Tensor]:
    """The adapter's weights up to a rank. TreeMismatch for a smaller one of fused experts, whose rows are by expert."""
    adapter, most = base.adapter, _peft(base)["r"]
    if rank == most:
        return adapter
    if stacks := [name for name, t in adapter.items() if factors.is_a(name) and len(t) != most]:
        raise TreeMismatch(f"adapter: rank {rank} of {most} is not for fused experts, as in {stacks[0]!r}")
    return factors.cut(adapter, rank)


def _joined(tree: Mapping[str, Tensor], merged: Mapping[str, Tensor], scale: float) -> Tree:
    """scale B A + the merged product as one pair of factors a module, all of one rank: zeros fill up."""
    more, out = factors.modules(merged), {}
    rank = factors.rank_of(tree) + factors.rank_of(merged)
    for name, (b, a) in factors.modules(tree).items():
        left, right = more.get(name, (b[:, :0], a[:0]))
        fill = rank - len(a) - len(right)
        out[name] = torch.cat([a, right, a.new_zeros(fill, a.shape[1])])
        out[factors.b_of(name)] = torch.cat([scale * b, left, b.new_zeros(len(b), fill)], 1)
    return out


def _copied(parameters: Mapping[str, Tensor]) -> Tree:
    return {n: p.detach().to("cpu", torch.float32, copy=True) for n, p in parameters.items()}


def count(parameters: Mapping[str, Tensor]) -> int:
    return sum(p.numel() for p in parameters.values())
