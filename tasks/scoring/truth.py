"""What a model's own answers are worth in a world whose truth is planted (tasks/data/base.py: Planted).

Pair accuracy ranks two given answers; it can rise while what the model itself writes stops being language. So the
model answers the probes of the source greedily, and its answers are looked up in the world.
"""

from collections.abc import Sequence

from core.types import Metrics
from tasks.data.base import Planted
from tasks.model.base import Base
from tasks.scoring.generate import Talker
from tasks.tokens.encode import Encoder

VALID, RIGHT, UTILITY = "truth/valid", "truth/right", "truth/utility"


def answered(base: Base, encoder: Encoder, source: Planted, *, seed: int, client: int | None) -> Metrics:
    """graded() of the answers that the base gives under its current adapter."""
    probes = source.probes()
    answers = Talker(base, encoder).generate_together(probes)
    return graded(source, probes, answers, seed=seed, client=client)


def graded(
    source: Planted, probes: Sequence[str], answers: Sequence[str], *, seed: int, client: int | None
) -> Metrics:
    """truth/valid, the share of the answers that are sentences of the world about what was asked; truth/right, the
    share that also state the right fact; truth/utility, the mean of what they are worth to `client`, 0 for one that is
    not valid, and absent without a client: where rows were dealt out, nobody has a planted type."""
    facts = [source.states_fact(seed, probe, answer) for probe, answer in zip(probes, answers, strict=True)]
    metrics: Metrics = {
        VALID: sum(fact is not None for fact in facts) / len(facts),
        RIGHT: sum(fact is True for fact in facts) / len(facts),
    }
    if client is not None:
        worth = [source.utility_of(seed, probe, a, client) for probe, a in zip(probes, answers, strict=True)]
        metrics[UTILITY] = sum(value or 0.0 for value in worth) / len(worth)
    return metrics
