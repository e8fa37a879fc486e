"""Adapters as trees: reading from and loading into a base, and saving in peft's format."""

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
    """The initial LoRA weights for this seed, at the full rank."""
    return factors.first(base.adapter, seed, adapter)


def get_adapter(base: Base) -> Tree:
    """A float32 copy of the adapter on the CPU, at its current rank, under peft's state-dict names."""
    return _copied(_weights_up_to(base, base.rank))


def get_private(base: Base) -> Tree:
    """A float32 copy of the private parts on the CPU. They never leave their client."""
    return _copied(base.private_parts.tensors)


def set_adapter(base: Base, tree: Mapping[str, Tensor], merged: Mapping[str, Tensor] | None = None) -> None:
    """Copy `tree` into the adapter, and set the frozen merged factors to `merged`; None removes them.

    A tree of a smaller rank r_k trains at rank r_k: above it A and B are zero, so that neither has a gradient there,
    and the scale is alpha / r_k. If the tree has no private parts, they are set to zero and have no effect.

    Raises:
        TreeMismatch: names or shapes of the tree are not those of the adapter.
    """
    private = {n: t for n, t in tree.items() if factors.is_private(n)}
    tree = {n: t for n, t in tree.items() if n not in private}
    rank = _rank(base, tree)
    weights = _weights_up_to(base, rank)
    same_layout(weights, tree, where="adapter")
    base.merged.put(merged or {})
    base.private_parts.put(private)
    with torch.no_grad():
        if rank < base.rank:
            for parameter in base.adapter.values():
                parameter.zero_()
        for name, weight in weights.items():
            weight.copy_(tree[name])
    if rank != base.rank:
        alpha = _peft(base)["lora_alpha"]
        for layer in base.merged.layers.values():
            layer.scaling["default"] = alpha / rank  # type: ignore[index]  # a dict of peft's
        base.rank = rank


def is_untouched(base: Base) -> bool:
    """Whether policy and reference are the same function: every B is zero, and neither merged factors nor private parts
    change the policy."""
    b = (p for name, p in base.adapter.items() if factors.is_b(name))
    return not base.merged.factors and not base.private_parts.moves_policy() and not any(p.any() for p in b)


def save_adapter(
    base: Base,
    tree: Mapping[str, Tensor],
    folder: Path,
    *,
    base_name: str,
    merged: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a folder that PeftModel.from_pretrained loads on top of the model `base_name`.

    With `merged`, of rank R, the folder has one LoRA of rank r + R and scale 1 that stacks [A; A_merged] and
    [s B, B_merged], where s is the scale of the adapter.
    """
    rank = _rank(base, tree)
    same_layout(_weights_up_to(base, rank), tree, where="adapter")
    folder.mkdir(parents=True, exist_ok=True)
    alpha = _peft(base)["lora_alpha"]
    if merged:
        tree = _joined(tree, merged, alpha / rank)
        rank = alpha = factors.rank_of(tree)
    config_to_load(base.model, rank, alpha, public_name(base_name)).save_pretrained(str(folder))
    tensors = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tree.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def public_name(model: str) -> str:
    """A model's name for publication: for a local folder, its name without the path."""
    path = Path(model).expanduser()
    return path.name if path.is_absolute() or path.is_dir() else model


def _peft(base: Base) -> dict[str, Any]:
    """peft's configuration of the adapter. Any: its fields have several types."""
    return base.model.peft_config["default"].to_dict()


def _rank(base: Base, tree: Mapping[str, Tensor]) -> int:
    """The rank of a tree, at most that of the base. The A of fused experts has this number of rows per expert."""
    full_rank, adapter = _peft(base)["r"], base.adapter
    ranks = [
        len(a) * full_rank // len(adapter[n]) for n, a in tree.items() if factors.is_a(n) and n in adapter
    ]
    return min(max(ranks, default=full_rank), full_rank)


def _weights_up_to(base: Base, rank: int) -> Mapping[str, Tensor]:
    """The adapter's weights up to a rank. TreeMismatch for fused experts, whose rows cannot be cut below full rank."""
    adapter, full_rank = base.adapter, _peft(base)["r"]
    if rank == full_rank:
        return adapter
    if stacks := [name for name, t in adapter.items() if factors.is_a(name) and len(t) != full_rank]:
        raise TreeMismatch(
            f"adapter: rank {rank} of {full_rank} is not supported for fused experts, as in {stacks[0]!r}"
        )
    return factors.cut(adapter, rank)


def _joined(tree: Mapping[str, Tensor], merged: Mapping[str, Tensor], scale: float) -> Tree:
    """scale B A plus the merged product as one pair of factors per module, padded with zeros to a common rank."""
    merged_pairs, out = factors.modules(merged), {}
    rank = factors.rank_of(tree) + factors.rank_of(merged)
    for name, (b, a) in factors.modules(tree).items():
        merged_b, merged_a = merged_pairs.get(name, (b[:, :0], a[:0]))
        padding = rank - len(a) - len(merged_a)
        out[name] = torch.cat([a, merged_a, a.new_zeros(padding, a.shape[1])])
        out[factors.b_of(name)] = torch.cat([scale * b, merged_b, b.new_zeros(len(b), padding)], 1)
    return out


def _copied(parameters: Mapping[str, Tensor]) -> Tree:
    return {n: p.detach().to("cpu", torch.float32, copy=True) for n, p in parameters.items()}


def count(parameters: Mapping[str, Tensor]) -> int:
    """Total number of elements."""
    return sum(p.numel() for p in parameters.values())
