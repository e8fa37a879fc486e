"""Batches of rows: seeded batches for training, groups of bounded cost for scoring."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def draw(rows: int, size: int, count: int, rng: random.Random) -> list[list[int]]:
    """`count` batches of min(size, rows) row numbers.

    Rows come from one permutation after another, so that no row is drawn n + 1 times before every row has been drawn
    n - 1 times. No batch holds a row twice.
    """
    assert rows > 0, rows
    size = min(size, rows)
    batches: list[list[int]] = []
    queue: list[int] = []
    for _ in range(count):
        batch = queue[:size]
        queue = queue[size:]
        if len(batch) < size:
            fresh = list(range(rows))
            rng.shuffle(fresh)
            fresh.sort(
                key=lambda row: row in batch
            )  # stable sort: rows that the batch already holds come later
            need = size - len(batch)
            batch, queue = batch + fresh[:need], fresh[need:]
        batches.append(batch)
    return batches


def subset(rows: int, most: int, rnd: int) -> list[int]:
    """min(most, rows) row numbers for round `rnd` (from 1), drawn as in OpenFedLLM.

    The round is the only seed, so that clients of equal size draw the same numbers in every run.
    """
    return random.Random(rnd - 1).sample(range(rows), min(most, rows))


def by_budget(items: Sequence[T], cost: Callable[[T], int], budget: int) -> Iterator[list[T]]:
    """Consecutive groups with a total cost of at most `budget`; an item above it is a group of its own."""
    group: list[T] = []
    total = 0
    for item in items:
        if group and total + cost(item) > budget:
            yield group
            group, total = [], 0
        group.append(item)
        total += cost(item)
    if group:
        yield group
