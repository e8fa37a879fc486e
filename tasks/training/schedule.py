"""How fast and how long a client trains in one round."""

import math
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from core.sections import TrainConfig
from core.types import Scalar


def of_round(train: TrainConfig, rows: int, knobs: Mapping[str, Scalar], rounds: int) -> TrainConfig:
    """`train` with the learning rate and the local steps that a client with `rows` training rows takes this round.

    knobs: of its order: "rnd"; "clients" (N) and "cohort" (the round's orders, K), which count where epochs do; of
    centralized, "rows" and "steps-factor": its one order stands for that many.
    """
    rate = learning_rate(train, int(knobs["rnd"]), rounds)
    return replace(train, learning_rate=rate, local_steps=local_steps(train, rows, knobs, rounds))


def learning_rate(train: TrainConfig, rnd: int, rounds: int) -> float:
    """The rate of round `rnd` of 1..rounds, constant within the round.

    cosine (OpenFedLLM's): min + (rate - min) (1 + cos(pi r/T))/2 with r = rnd - 1, T = rounds; linear: the fall is
    1 - r/T. Round 1 has the full rate; the last round stands one round before the minimum.
    """
    high, low, done = train.learning_rate, train.min_learning_rate, (rnd - 1) / rounds
    if train.lr_schedule == "constant":
        return high
    return low + (high - low) * (
        (1 + math.cos(math.pi * done)) / 2 if train.lr_schedule == "cosine" else 1 - done
    )


def local_steps(train: TrainConfig, rows: int, knobs: Mapping[str, Scalar], rounds: int) -> int:
    """Optimiser steps of a client with n = `rows` in one round: train.local-steps, or what epochs over n take.

    local-epochs e: ceil(e n / batch). total-epochs E (FedLLM-Bench's dynamic steps): ceil(n E / (T K/N) / batch), where
    a client is in T K/N of the T rounds. Both are counted in exact fractions of the decimal that was given.
    """
    factor = int(knobs.get("steps-factor", 1))
    if train.local_epochs:
        epochs = Fraction(str(train.local_epochs))
    elif train.total_epochs:
        share = Fraction(factor * int(knobs["cohort"]), int(knobs["clients"]))
        epochs = Fraction(str(train.total_epochs)) / (rounds * share)
    else:
        return train.local_steps * factor
    # who holds every row works for `factor` clients, each of them with its part
    part = Fraction(rows, int(knobs["clients"]) if knobs.get("rows") == "all" else 1)
    return factor * math.ceil(
        epochs * part / (train.per_device_batch_size * train.gradient_accumulation_steps)
    )
