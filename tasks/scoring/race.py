"""Find the adapter with the lowest loss on a client's rows without scoring every adapter on every row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

FIRST, GROWTH = 16, 1.5  # rows before the first comparison; growth of the number of rows from one to the next
Score = Callable[[str, int, int], Sequence[float]]  # (adapter, start, stop) -> the losses of these rows


@dataclass(frozen=True)
class Result:
    """The estimated losses by adapter."""

    losses: dict[
        str, float
    ]  # comparable: a dropped adapter has the best loss plus their mean paired difference
    scored: float  # scored share of all rows x adapters


def race(names: Sequence[str], weights: Sequence[float], score: Score, *, z: float = 0.0) -> Result:
    """Estimate the weighted mean loss of each adapter over len(weights) > 0 rows, whose order must be arbitrary.

    Rows are scored in growing pieces. After each piece, an adapter is dropped if the mean of its paired differences to
    the best adapter so far is more than z standard errors above 0. The race ends after the last row or when one adapter
    remains. The loss of a dropped adapter is the mean loss of the best plus their mean difference on the rows that both
    have, since clients are grouped by differences of losses. z = 0 scores every adapter on every row. A loss that is
    not finite is worse than any finite one. The same arguments give the same result.

    Args:
        names: names of the adapters.
        weights: weight of each row.
        score: computes the losses of an adapter on a range of rows.
        z: number of standard errors at which an adapter is dropped.
    """
    rows, w = len(weights), np.asarray(weights, np.float64)
    losses: dict[str, np.ndarray] = {name: np.empty(0) for name in names}
    remaining, scored_rows = list(names), 0
    while scored_rows < rows and (not scored_rows or len(remaining) > 1):
        stop = min(rows, max(FIRST, int(scored_rows * GROWTH))) if z else rows
        for name in remaining:
            losses[name] = np.append(losses[name], score(name, scored_rows, stop))
        scored_rows = stop
        best = _best(losses, remaining, w)
        if z:
            gaps = {name: losses[name] - losses[best] for name in remaining if name != best}
            remaining = [
                name for name in remaining if name == best or not _is_worse(gaps[name], w[:scored_rows], z)
            ]
    best = _best(losses, remaining, w)
    best_mean = _mean(losses[best], w)
    comparable = {name: best_mean + _mean(x - losses[best][: len(x)], w) for name, x in losses.items()}
    return Result(comparable, sum(map(len, losses.values())) / (rows * len(names)))


def _best(losses: dict[str, np.ndarray], remaining: Sequence[str], w: np.ndarray) -> str:
    """The adapter with the lowest mean loss, the first of equal ones; the first if no mean is finite."""
    means = {name: _mean(losses[name], w) for name in remaining}
    return min(remaining, key=lambda name: means[name] if np.isfinite(means[name]) else np.inf)


def _is_worse(gaps: np.ndarray, w: np.ndarray, z: float) -> bool:
    """Whether the weighted mean of paired differences is more than z standard errors above 0."""
    if not np.isfinite(gaps).all():
        return True
    mean, count = _mean(gaps, w), len(gaps)
    standard_error = np.sqrt(count / max(1, count - 1) * ((w * (gaps - mean)) ** 2).sum()) / w.sum()
    return bool(mean > z * standard_error)


def _mean(values: np.ndarray, w: np.ndarray) -> float:
    weights = w[: len(values)]
    return float((weights * values).sum() / weights.sum())
