"""Grade a model's own answers against the planted truth of a data source (tasks/data/base.py: Planted).

Pair accuracy ranks two existing answers and can rise while the model's own answers degenerate. Therefore the model
answers the probes of the source greedily, and its answers are compared with the planted truth.
"""

from collections.abc import Sequence

from core.types import Metrics
from tasks.data.base import Planted
from tasks.model.base import Base
from tasks.scoring.generate import TextGenerator
from tasks.tokens.encode import Encoder

VALID, RIGHT, UTILITY = "truth/valid", "truth/right", "truth/utility"


def grade_model(base: Base, encoder: Encoder, source: Planted, *, seed: int, client: int | None) -> Metrics:
    """grade_answers() of the greedy answers of the base under its current adapter."""
    probes = source.probes()
    answers = TextGenerator(base, encoder).generate_together(probes)
    return grade_answers(source, probes, answers, seed=seed, client=client)


def grade_answers(
    source: Planted, probes: Sequence[str], answers: Sequence[str], *, seed: int, client: int | None
) -> Metrics:
    """Metrics of answers to probes.

    truth/valid is the share of answers that are sentences of the toy language about the question; truth/right the share
    that also state the right fact; truth/utility their mean utility to `client`, 0 for an answer that is not valid.
    The last is absent without a client: where rows are redistributed, clients have no planted type.
    """
    facts = [source.states_fact(seed, probe, answer) for probe, answer in zip(probes, answers, strict=True)]
    metrics: Metrics = {
        VALID: sum(fact is not None for fact in facts) / len(facts),
        RIGHT: sum(fact is True for fact in facts) / len(facts),
    }
    if client is not None:
        utilities = [
            source.utility_of(seed, probe, a, client) for probe, a in zip(probes, answers, strict=True)
        ]
        metrics[UTILITY] = sum(utility or 0.0 for utility in utilities) / len(utilities)
    return metrics
