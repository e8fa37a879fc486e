"""Batches drawn without replacement, and groups of bounded cost."""

import random
import re
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tasks.forward.batches import by_budget, draw, subset
from tests.vectors import OPENFEDLLM


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 20), st.integers(0, 99))
def test_rows_are_drawn_evenly_and_at_most_once_per_batch(
    rows: int, size: int, count: int, seed: int
) -> None:
    batches = draw(rows, size, count, random.Random(seed))
    assert [len(batch) for batch in batches] == [min(size, rows)] * count
    assert all(len(set(batch)) == len(batch) for batch in batches)
    counts = Counter(row for batch in batches for row in batch)
    assert max(counts.values()) - min(counts[row] for row in range(rows)) <= 2


def test_batches_of_all_rows_are_one_permutation() -> None:
    batches = draw(12, 4, 3, random.Random(7))
    assert sorted(row for batch in batches for row in batch) == list(range(12))
    assert batches == draw(12, 4, 3, random.Random(7)) != draw(12, 4, 3, random.Random(8))


def test_groups_stay_within_the_budget_and_hold_at_least_one_item() -> None:
    assert list(by_budget([3, 4, 9, 1, 1], lambda n: n, 7)) == [[3, 4], [9], [1, 1]]
    assert list(by_budget([], len, 7)) == []


def test_the_subset_of_a_round_equals_openfedllms():
    """Its rounds count from 0; min(batch * accumulation * steps, n) rows, or the first 20 of them."""
    vector = OPENFEDLLM["per_round_subset"]
    inputs = vector["inputs"]
    most = inputs["batch_size"] * inputs["grad_accum"] * inputs["max_steps"]
    for name, want in vector["outputs"].items():
        rows, rnd = map(int, re.findall(r"n(\d+)_round(\d+)", name)[0])
        got = subset(rows, most, rnd + 1)
        assert len(got) == min(most, rows)
        assert got[: len(want)] == want, name
        assert len(want) in (len(got), 20), name
