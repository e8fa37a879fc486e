"""Names of tensors in a tree: private parts of a client, and LoRA's factors with their rank and initial values.

W = W0 + s B A, A is (r, in) and B (out, r).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from core.seeds import torch_rng_for
from core.tree import Tree

PRIVATE = "private."  # prefix of tensors that never leave their client: private.PART.NAME
MERGED = "merged"  # name of the tree of merged factors in an order: frozen, of rank R, with s = 1


def is_a(name: str) -> bool:
    return ".lora_A." in name


def is_b(name: str) -> bool:
    return ".lora_B." in name


def is_private(name: str) -> bool:
    return name.startswith(PRIVATE)


def part_of(name: str) -> str:
    """Return the part that a private tensor belongs to; "" for a tensor of the adapter."""
    return name.split(".")[1] if is_private(name) else ""


def modules(tree: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return (B, A) of each module, by the name of A."""
    return {name: (tree[b_of(name)], a) for name, a in tree.items() if is_a(name)}


def b_of(name_of_a: str) -> str:
    return name_of_a.replace(".lora_A.", ".lora_B.")


def rank_of(tree: Mapping[str, Tensor]) -> int:
    """Return the largest rank of a module; 0 if there is none."""
    return max((len(t) for name, t in tree.items() if is_a(name)), default=0)


def cut(tree: Mapping[str, Tensor], rank: int) -> Tree:
    """Return views of the first `rank` rows of A and columns of B."""
    return {n: t[:rank] if is_a(n) else t[:, :rank] if is_b(n) else t for n, t in tree.items()}


def start(like: Mapping[str, Tensor], seed: int, *purpose: str | int) -> Tree:
    """Return LoRA's initial values: A uniform within 1/sqrt(inputs) (kaiming with a = sqrt 5, as in peft), B zero."""
    out: Tree = {}
    for name, t in like.items():
        out[name] = torch.zeros(t.shape)
        if is_a(name):
            bound = 1 / math.sqrt(t[0].numel())
            out[name].uniform_(-bound, bound, generator=torch_rng_for(seed, "lora", *purpose, name))
    return out


def first(like: Mapping[str, Tensor], seed: int, adapter: str) -> Tree:
    """Return the initial values of the adapter of that name, which server and clients compute independently."""
    return start(like, seed) if adapter == "global" else start(like, seed, adapter)
