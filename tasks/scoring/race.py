"""Which adapter has the least loss on a client's rows, without scoring every adapter on every row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

FIRST, GROWTH = 16, 1.5  # rows before the first look; all rows seen at a look over those at the one before
Score = Callable[[str, int, int], Sequence[float]]  # (adapter, start, stop) -> the losses of these rows


@dataclass(frozen=True)
class Result:
    losses: dict[str, float]  # comparable: what was dropped is placed by its paired difference to the best
    scored: float  # share of the rows x adapters that were


def race(names: Sequence[str], weights: Sequence[float], score: Score, *, z: float = 0.0) -> Result:
    """The weighted mean loss of each adapter over len(weights) > 0 rows, which are in no particular order.

    Rows come in growing pieces; after each, an adapter whose mean paired difference to the best so far is more than
    z of its standard errors above 0 is dropped, and the race ends with its last row or with one adapter left.
    A dropped adapter's loss is the best's mean and their mean difference on the rows both have: only differences
    place a client, and they are an estimate from fewer rows. z = 0: everything is scored.
    A loss that is not finite loses to any that is. The same arguments give the same result.
    """
    rows, w = len(weights), np.asarray(weights, np.float64)
    losses: dict[str, np.ndarray] = {name: np.empty(0) for name in names}
    left, done = list(names), 0
    while done < rows and (not done or len(left) > 1):
        stop = min(rows, max(FIRST, int(done * GROWTH))) if z else rows
        for name in left:
            losses[name] = np.append(losses[name], score(name, done, stop))
        done = stop
        best = _best(losses, left, w)
        if z:
            gaps = {name: losses[name] - losses[best] for name in left if name != best}
            left = [name for name in left if name == best or not _behind(gaps[name], w[:done], z)]
    best = _best(losses, left, w)
    level = _mean(losses[best], w)
    placed = {name: level + _mean(x - losses[best][: len(x)], w) for name, x in losses.items()}
    return Result(placed, sum(map(len, losses.values())) / (rows * len(names)))


def _best(losses: dict[str, np.ndarray], left: Sequence[str], w: np.ndarray) -> str:
    """The first of the lowest; where nothing is finite, the first."""
    means = {name: _mean(losses[name], w) for name in left}
    return min(left, key=lambda name: means[name] if np.isfinite(means[name]) else np.inf)


def _behind(gaps: np.ndarray, w: np.ndarray, z: float) -> bool:
    if not np.isfinite(gaps).all():
        return True
    mean, count = _mean(gaps, w), len(gaps)
    spread = np.sqrt(count / max(1, count - 1) * ((w * (gaps - mean)) ** 2).sum()) / w.sum()
    return bool(mean > z * spread)


def _mean(values: np.ndarray, w: np.ndarray) -> float:
    some = w[: len(values)]
    return float((some * values).sum() / some.sum())
