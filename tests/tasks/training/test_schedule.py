"""The rate of a round and its number of steps."""

import math

import pytest

from core.sections import TrainConfig
from tasks.training.schedule import learning_rate, local_steps, of_round
from tests.vectors import OPENFEDLLM

FEDERATION = {"rnd": 1, "clients": 4, "cohort": 2}


@pytest.mark.parametrize("name", ["cosine_lr_sft_T200", "cosine_lr_chatbotpa_T200"])
def test_the_cosine_is_openfedllms(name):
    vector = OPENFEDLLM[name]
    given, want = vector["inputs"], vector["outputs"]["lr"]
    train = TrainConfig(learning_rate=given["lr0"], min_learning_rate=given["lr_min"], lr_schedule="cosine")
    got = [learning_rate(train, rnd, given["T"]) for rnd in range(1, given["T"] + 1)]
    assert got == pytest.approx(want, rel=1e-12, abs=0)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.8, 0.6, 0.4]),
        ("cosine", [1.0, 0.8828, 0.6, 0.3172]),
    ],
)
def test_four_rounds_by_hand(schedule, rates):
    """From 1 to 0.2: 0.2 + 0.8 (1 - r/4), and 0.2 + 0.4 (1 + cos(r pi/4)) = 0.6 + 0.4 cos(r pi/4)."""
    train = TrainConfig(learning_rate=1.0, min_learning_rate=0.2, lr_schedule=schedule)
    if schedule == "constant":
        train = TrainConfig(learning_rate=1.0)
    assert [learning_rate(train, rnd, 4) for rnd in (1, 2, 3, 4)] == pytest.approx(rates, abs=1e-4)


def test_dynamic_steps_are_fedllm_benchs():
    vector = OPENFEDLLM["dynamic_local_step"]
    given = vector["inputs"]
    train = TrainConfig(
        total_epochs=float(given["epochs"]),
        per_device_batch_size=given["batch_size"],
        gradient_accumulation_steps=given["grad_accum"],
    )
    knobs = {"clients": given["num_clients"], "cohort": given["sample_clients"]}
    for rows, steps in vector["outputs"]["steps"].items():
        assert local_steps(train, int(rows), knobs, given["num_rounds"]) == steps, rows


def test_epochs_by_hand():
    """30 rows in steps of 2 * 3: 5 a pass. 8 rounds of 2 of 4 clients ask each 4 times: 8 passes are 2 a time."""
    train = TrainConfig(per_device_batch_size=2, gradient_accumulation_steps=3)
    passes = lambda **epochs: local_steps(TrainConfig(**{**vars(train), **epochs}), 30, FEDERATION, 8)  # noqa: E731
    assert passes() == 10
    assert passes(local_epochs=1.0) == 5
    assert passes(local_epochs=0.5) == 3
    assert passes(local_epochs=0.01) == 1
    assert passes(total_epochs=8.0) == 10
    assert passes(total_epochs=1.0) == 2


def test_a_decimal_is_counted_as_it_is_written():
    """0.07 * 100 / 7 is 1.0000000000000002 in floating point."""
    assert math.ceil(0.07 * 100 / 7) == 2
    assert local_steps(TrainConfig(local_epochs=0.07, per_device_batch_size=7), 100, FEDERATION, 1) == 1


@pytest.mark.parametrize("epochs", [{}, {"local_epochs": 1.0}, {"total_epochs": 4.0}])
def test_one_client_with_all_rows_takes_the_cohorts_steps(epochs):
    """Four clients of 24 rows; two of them are asked each round."""
    train = TrainConfig(**epochs, per_device_batch_size=4)
    alone = local_steps(train, 24, FEDERATION, 8)
    knobs = {**FEDERATION, "cohort": 1, "rows": "all", "steps-factor": 2}
    assert local_steps(train, 4 * 24, knobs, 8) == 2 * alone


def test_a_round_is_a_config_with_its_rate_and_steps():
    train = TrainConfig(lr_schedule="linear", learning_rate=1.0, local_epochs=1.0, per_device_batch_size=4)
    now = of_round(train, 12, {**FEDERATION, "rnd": 3}, 4)
    assert (now.learning_rate, now.local_steps) == (0.5, 3)
