"""Derive every seed from the run's seed and a purpose, so that no generator state needs to be stored."""

import hashlib
import random

import torch


def seed_for(run_seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for one purpose, e.g. `seed_for(seed, "batches", rnd, client)`.

    Equal arguments give the same seed on every machine; different ones give unrelated seeds.
    """
    text = "\x1f".join([str(run_seed), *(f"{type(part).__name__}:{part}" for part in purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def rng_for(run_seed: int, *purpose: str | int) -> random.Random:
    """Return a Python generator for one purpose."""
    return random.Random(seed_for(run_seed, *purpose))


def torch_rng_for(run_seed: int, *purpose: str | int) -> torch.Generator:
    """Return a torch generator on the CPU for one purpose."""
    return torch.Generator().manual_seed(seed_for(run_seed, *purpose))
