"""Which rows go together: seeded batches for training, groups by size for scoring."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def draw(rows: int, size: int, count: int, rng: random.Random) -> list[list[int]]:
    """`count` batches of min(size, rows) row numbers.

    Rows are taken from one permutation after another, so that none is seen n + 1 times before every one has
    been seen n - 1 times; no batch holds a row twice.
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
            fresh.sort(key=lambda row: row in batch)  # stable; what the batch holds already has to wait
            need = size - len(batch)
            batch, queue = batch + fresh[:need], fresh[need:]
        batches.append(batch)
    return batches


def subset(rows: int, most: int, rnd: int) -> list[int]:
    """min(most, rows) row numbers of round `rnd` (from 1), drawn as OpenFedLLM does: by the round alone, so that
    clients of one size use the same numbers, and so does every run."""
    return random.Random(rnd - 1).sample(range(rows), min(most, rows))


def by_budget(items: Sequence[T], cost: Callable[[T], int], budget: int) -> Iterator[list[T]]:
    """Consecutive groups whose costs add up to at most `budget`; a group has at least one item."""
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
