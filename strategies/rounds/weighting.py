"""Weights of clients in the mean, and sampling of a round's cohort."""

import math
import random
from collections.abc import Sequence

from core.sections import StrategyConfig
from core.seeds import rng_for
from core.types import Client, Update

WEIGHTINGS = ("auto", "examples", "uniform", "tokens")


def weight(update: Update, weighting: str) -> float:
    """Return w_k: the client's rows (examples), completion tokens in them (tokens), or 1 (uniform)."""
    return {"examples": float(update.examples), "tokens": float(update.tokens), "uniform": 1.0}[weighting]


def cohort_size(clients: int, fraction: float) -> int:
    """Return how many of the connected clients are sampled for a round."""
    return max(1, round(fraction * clients))


def smallest_cohort(participation: StrategyConfig) -> int:
    """Return the cohort size when only the clients that a run waits for are connected."""
    clients = participation.min_available_nodes
    return clients if participation.sampling == "all" else cohort_size(clients, participation.fraction_train)


def sample(everyone: Sequence[Client], fraction: float, method: str, seed: int, rnd: int) -> list[Client]:
    """Return the cohort of round rnd (from 1): max(1, round(fraction * n)) clients, a function of (seed, rnd), by id.

    weighted: without replacement, each draw in proportion to the examples (Efraimidis and Spirakis 2006).
    openfedllm: Python's `random` seeded with rnd - 1 alone, not with the run's seed: every run samples the same.
    """
    ids = sorted(c.id for c in everyone)
    count = cohort_size(len(ids), fraction)
    if method == "all":
        chosen = ids
    elif method == "openfedllm":
        chosen = random.Random(rnd - 1).sample(ids, count)
    elif method == "weighted":
        rng, size = rng_for(seed, "cohort", rnd), {c.id: c.examples for c in everyone}
        keys = {i: -math.log(1.0 - rng.random()) / size[i] for i in ids if size[i] > 0}
        chosen = sorted(keys, key=lambda i: (keys[i], i))[:count]
    else:
        chosen = rng_for(seed, "cohort", rnd).sample(ids, count)
    return [c for c in everyone if c.id in set(chosen)]
