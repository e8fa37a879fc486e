"""One seed in, every other seed out: no generator state is ever stored."""

import hashlib
import random

import torch


def seed_for(run_seed: int, *what: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. `seed_for(seed, "batches", rnd, client)`.

    The same arguments give the same seed on every machine; any different argument gives an unrelated one.
    """
    text = "\x1f".join([str(run_seed), *(f"{type(w).__name__}:{w}" for w in what)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def rng_for(run_seed: int, *what: str | int) -> random.Random:
    """A Python generator for one purpose."""
    return random.Random(seed_for(run_seed, *what))


def torch_rng_for(run_seed: int, *what: str | int) -> torch.Generator:
    """A CPU torch generator for one purpose."""
    return torch.Generator().manual_seed(seed_for(run_seed, *what))
