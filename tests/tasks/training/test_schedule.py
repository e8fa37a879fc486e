"""The learning rate of a round and its number of local steps."""

import math
from dataclasses import replace

import pytest

from core.sections import TrainConfig
from core.types import Order
from tasks.training.schedule import learning_rate, local_steps, of_round
from tests.vectors import OPENFEDLLM

FEDERATION = Order(0, {}, round=1, clients=4, cohort=2)


@pytest.mark.parametrize("name", ["cosine_lr_sft_T200", "cosine_lr_chatbotpa_T200"])
def test_the_cosine_schedule_equals_openfedllms(name):
    vector = OPENFEDLLM[name]
    inputs, want = vector["inputs"], vector["outputs"]["lr"]
    train = TrainConfig(learning_rate=inputs["lr0"], min_learning_rate=inputs["lr_min"], lr_schedule="cosine")
    got = [learning_rate(train, rnd, inputs["T"]) for rnd in range(1, inputs["T"] + 1)]
    assert got == pytest.approx(want, rel=1e-12, abs=0)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.8, 0.6, 0.4]),
        ("cosine", [1.0, 0.8828, 0.6, 0.3172]),
    ],
)
def test_rates_of_four_rounds_computed_by_hand(schedule, rates):
    """From 1 to 0.2: 0.2 + 0.8 (1 - r/4), and 0.2 + 0.4 (1 + cos(r pi/4)) = 0.6 + 0.4 cos(r pi/4)."""
    train = TrainConfig(learning_rate=1.0, min_learning_rate=0.2, lr_schedule=schedule)
    if schedule == "constant":
        train = TrainConfig(learning_rate=1.0)
    assert [learning_rate(train, rnd, 4) for rnd in (1, 2, 3, 4)] == pytest.approx(rates, abs=1e-4)


def test_dynamic_steps_equal_fedllm_benchs():
    vector = OPENFEDLLM["dynamic_local_step"]
    inputs = vector["inputs"]
    train = TrainConfig(
        total_epochs=float(inputs["epochs"]),
        per_device_batch_size=inputs["batch_size"],
        gradient_accumulation_steps=inputs["grad_accum"],
    )
    order = Order(0, {}, clients=inputs["num_clients"], cohort=inputs["sample_clients"])
    for rows, steps in vector["outputs"]["steps"].items():
        assert local_steps(train, int(rows), order, inputs["num_rounds"]) == steps, rows


def test_steps_of_epochs_computed_by_hand():
    """30 rows in steps of 2 * 3: 5 a pass. 8 rounds of 2 of 4 clients ask each 4 times: 8 passes are 2 a time."""
    train = TrainConfig(per_device_batch_size=2, gradient_accumulation_steps=3)
    passes = lambda **epochs: local_steps(TrainConfig(**{**vars(train), **epochs}), 30, FEDERATION, 8)  # noqa: E731
    assert passes() == 10
    assert passes(local_epochs=1.0) == 5
    assert passes(local_epochs=0.5) == 3
    assert passes(local_epochs=0.01) == 1
    assert passes(total_epochs=8.0) == 10
    assert passes(total_epochs=1.0) == 2


def test_epochs_are_exact_decimals():
    """0.07 * 100 / 7 is 1.0000000000000002 in floating point."""
    assert math.ceil(0.07 * 100 / 7) == 2
    assert local_steps(TrainConfig(local_epochs=0.07, per_device_batch_size=7), 100, FEDERATION, 1) == 1


@pytest.mark.parametrize("epochs", [{}, {"local_epochs": 1.0}, {"total_epochs": 4.0}])
def test_the_order_over_all_rows_takes_the_steps_of_the_cohort(epochs):
    """Four clients of 24 rows; two of them are sampled each round."""
    train = TrainConfig(**epochs, per_device_batch_size=4)
    alone = local_steps(train, 24, FEDERATION, 8)
    order = replace(FEDERATION, cohort=1, options={"rows": "all", "steps-factor": 2})
    assert local_steps(train, 4 * 24, order, 8) == 2 * alone


def test_the_config_of_a_round_has_its_rate_and_steps():
    train = TrainConfig(lr_schedule="linear", learning_rate=1.0, local_epochs=1.0, per_device_batch_size=4)
    config = of_round(train, 12, replace(FEDERATION, round=3), 4)
    assert (config.learning_rate, config.local_steps) == (0.5, 3)
