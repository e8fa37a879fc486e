"""The learning rate and the number of local steps of a client in one round."""

import math
from dataclasses import replace
from fractions import Fraction

from core.sections import TrainConfig
from core.types import Order


def of_round(train: TrainConfig, rows: int, order: Order, rounds: int) -> TrainConfig:
    """`train` with the learning rate and the local steps of this round for a client with `rows` training rows.

    order: the client's. Its numbers of clients N and of orders in the round K are read where epochs are configured;
    the options "rows" and "steps-factor" are set by strategy.name = centralized, whose only order stands for that many
    clients.
    """
    rate = learning_rate(train, order.round, rounds)
    return replace(train, learning_rate=rate, local_steps=local_steps(train, rows, order, rounds))


def learning_rate(train: TrainConfig, rnd: int, rounds: int) -> float:
    """The learning rate of round `rnd` (1..rounds), constant within the round.

    With r = rnd - 1 and T = rounds, cosine (as in OpenFedLLM) is min + (rate - min) (1 + cos(pi r/T))/2, and linear is
    min + (rate - min) (1 - r/T). Round 1 has the full rate; the minimum would be reached one round after the last.
    """
    high, low, progress = train.learning_rate, train.min_learning_rate, (rnd - 1) / rounds
    if train.lr_schedule == "constant":
        return high
    return low + (high - low) * (
        (1 + math.cos(math.pi * progress)) / 2 if train.lr_schedule == "cosine" else 1 - progress
    )


def local_steps(train: TrainConfig, rows: int, order: Order, rounds: int) -> int:
    """Optimiser steps of a client with n = `rows` training rows in one round.

    By default train.local-steps. With local-epochs e: ceil(e n / batch). With total-epochs E (the dynamic steps of
    FedLLM-Bench): ceil(n E / (T K/N) / batch), since a client takes part in T K/N of the T rounds on average. Epochs
    are exact fractions of the configured decimal, so that ceil does not round up on a binary rounding error.
    """
    factor = int(order.options.get("steps-factor", 1))
    if train.local_epochs:
        epochs = Fraction(str(train.local_epochs))
    elif train.total_epochs:
        share = Fraction(factor * order.cohort, order.clients)
        epochs = Fraction(str(train.total_epochs)) / (rounds * share)
    else:
        return train.local_steps * factor
    # An order over all rows stands for `factor` clients, each of which has 1/N of the rows.
    part = Fraction(rows, order.clients if order.options.get("rows") == "all" else 1)
    return factor * math.ceil(
        epochs * part / (train.per_device_batch_size * train.gradient_accumulation_steps)
    )
