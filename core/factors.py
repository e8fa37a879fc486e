"""Names in a tree: a client's own parts, and LoRA's factors with their rank and start.

W = W0 + s B A, A is (r, in) and B (out, r).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from core.seeds import torch_rng_for
from core.tree import Tree

PRIVATE = "private."  # begins the name of a tensor that never leaves its client: private.PART.NAME
MERGED = "merged"  # the tree of an order beside the adapter: frozen factors of rank R, with s = 1


def is_a(name: str) -> bool:
    return ".lora_A." in name


def is_b(name: str) -> bool:
    return ".lora_B." in name


def is_private(name: str) -> bool:
    return name.startswith(PRIVATE)


def part_of(name: str) -> str:
    """The part of a private tensor; "" for one of the adapter."""
    return name.split(".")[1] if is_private(name) else ""


def modules(tree: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """By the name of A: (B, A) of each module."""
    return {name: (tree[b_of(name)], a) for name, a in tree.items() if is_a(name)}


def b_of(name_of_a: str) -> str:
    return name_of_a.replace(".lora_A.", ".lora_B.")


def rank_of(tree: Mapping[str, Tensor]) -> int:
    """The largest rank of a module; 0 without any."""
    return max((len(t) for name, t in tree.items() if is_a(name)), default=0)


def cut(tree: Mapping[str, Tensor], rank: int) -> Tree:
    """Views of the first `rank` places: rows of A, columns of B."""
    return {n: t[:rank] if is_a(n) else t[:, :rank] if is_b(n) else t for n, t in tree.items()}


def start(like: Mapping[str, Tensor], seed: int, *what: str | int) -> Tree:
    """LoRA's start: A uniform within 1/sqrt(inputs) (kaiming with a = sqrt 5, as in peft), B zero."""
    out: Tree = {}
    for name, t in like.items():
        out[name] = torch.zeros(t.shape)
        if is_a(name):
            bound = 1 / math.sqrt(t[0].numel())
            out[name].uniform_(-bound, bound, generator=torch_rng_for(seed, "lora", *what, name))
    return out


def first(like: Mapping[str, Tensor], seed: int, adapter: str) -> Tree:
    """Where an adapter of that name begins: on the server and, of what does not travel, at every client."""
    return start(like, seed) if adapter == "global" else start(like, seed, adapter)
