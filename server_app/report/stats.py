"""Statistics of a run: confidence intervals, the gain over the base, the worst client, the spread over clients.

Accuracies over pooled rows have Wilson's score interval (Wilson 1927), which treats the rows as independent.
For the gain, clients are resampled instead of rows: rows of one client are correlated, and each client is measured
before and after (paired). The interval is a percentile bootstrap with Hesterberg's expanded percentiles (2015, "What
Teachers Should Know About the Bootstrap", section 4.2), which correct its narrowness at few clients.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Literal

import numpy as np

from core.seeds import seed_for
from server_app.report.reading import Half, Record, Run

PREFERENCE = "logps/accuracies"  # the model prefers the chosen answer
CHOICE = "accuracy"  # a selector or a reward model picks the chosen answer
LONGER = "length/accuracies"  # the longer answer is the chosen one
TOGETHER = "vote/accuracy"  # the soft vote of all selectors picks the chosen answer
ORDERS = "order_consistency"  # the selector picks the same answer in both orders of a pair
EXPLICIT = "explicit/accuracies"  # a client's own reward head scores the chosen answer higher
COMBINED = "combined/accuracies"  # explicit and implicit reward combined do
TOKENS = "mean_token_accuracy"
CHOSEN = "logps/chosen"
VALID, RIGHT, UTILITY = "truth/valid", "truth/right", "truth/utility"  # tasks/scoring/truth.py
ACCURACIES = (PREFERENCE, CHOICE, TOKENS)  # candidates for the main metric of a run, in order of preference
# With C clients, all fall on one side of the true median with probability 2^(1-C), which is below 5 % from C = 6 on.
MIN_CLUSTERS = 6
RESAMPLES = 10_000
METHOD_OF_GAINS = (
    f"Gain: 95 % bootstrap interval over clients ({RESAMPLES} paired resamples, expanded percentiles, "
    f"seeded); omitted below {MIN_CLUSTERS} clients."
)
METHOD = (
    f"Accuracies: 95 % Wilson score interval over the pooled held-out rows. {METHOD_OF_GAINS} "
    "The worst client is selected after the measurement, so it has no interval."
)


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval where one is valid, and the number of observations `n` of kind `of`."""

    key: str
    name: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    of: Literal["rows", "clients", "prompts", "answers"] = "rows"
    unit: Literal["share", "points", "number"] = "share"  # points: a difference of two shares


@dataclass(frozen=True)
class Pooled:
    """A share over the held-out rows of all clients that measured it."""

    value: float
    rows: int


def is_share(metric: str) -> bool:
    """Whether a metric is a share of rows, by TRL's way of naming them: accuracy, accuracies."""
    return "accurac" in metric


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share of `count` rows; the number of successes is rounded to an integer."""
    assert count > 0, count
    assert 0 <= share <= 1, share
    from scipy.stats import binomtest  # slow to import

    interval = binomtest(round(share * count), count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def pooled(half: Half, metric: str) -> Pooled | None:
    """The row-weighted mean of a metric over clients; None if no client measured it."""
    counts = rows_by_client(half)
    values = {client: value for client, value in half.by_client(metric).items() if counts.get(client)}
    if values:
        total = sum(counts[client] for client in values)
        return Pooled(sum(value * counts[client] for client, value in values.items()) / total, total)
    total = int(half.mean.get("examples", 0))
    return Pooled(half.mean[metric], total) if metric in half.mean and total else None


def worst(half: Half, metric: str) -> tuple[int, float] | None:
    """(client, value) of the lowest value; on a tie, of the smaller client number."""
    values = half.by_client(metric)
    client = min(values, key=lambda c: (values[c], c), default=None)
    return None if client is None else (client, values[client])


def spread(half: Half, metric: str) -> float | None:
    """Unweighted standard deviation over clients, with C - 1 in the denominator; None below two clients."""
    values = list(half.by_client(metric).values())
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def gain(before: Half, after: Half, metric: str, *, seed: int) -> Estimate | None:
    """Mean of after - before over the clients that measured both, weighted by their rows in `after`."""
    a, b, counts = before.by_client(metric), after.by_client(metric), rows_by_client(after)
    both = [client for client in b if client in a and counts.get(client)]
    if not both:
        return None
    deltas = np.array([b[client] - a[client] for client in both])
    weights = np.array([counts[client] for client in both], float)
    low, high = cluster_interval(deltas, weights, seed=seed) if len(both) >= MIN_CLUSTERS else (None, None)
    value = float(deltas @ weights / weights.sum())
    return Estimate("gain", "Gain over the base", value, low, high, len(both), "clients", "points")


def cluster_interval(deltas: np.ndarray, weights: np.ndarray, *, seed: int) -> tuple[float, float]:
    """95 % interval of the weighted mean sum(w d) / sum(w) over sampled clients. deltas, weights: (C,), C >= 2."""
    from scipy.stats import norm, t  # slow to import

    count = len(deltas)
    # expanded percentile: the normal tail probability at the t quantile, widened by sqrt(C / (C - 1)) since the
    # bootstrap resamples a variance with C in the denominator
    tail = norm.cdf(np.sqrt(count / (count - 1)) * t.ppf(0.025, count - 1))
    rng = np.random.default_rng(seed_for(seed, "bootstrap"))
    means = []
    for _ in range(0, RESAMPLES, 500):  # in chunks of (500, C), to bound memory
        draws = rng.multinomial(count, np.full(count, 1 / count), size=500)
        means.append(draws @ (weights * deltas) / (draws @ weights))
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def accuracy_metric(run: Run) -> str | None:
    """The main accuracy metric of the run: the first of ACCURACIES that was measured; None if none was."""
    for metric in ACCURACIES:
        if any(metric in half_metrics(record.eval) for record in run.records):
            return metric
    return None


def half_metrics(half: Half) -> set[str]:
    """Names of all metrics in the mean or at any client."""
    return set(half.mean).union(*half.clients.values()) if half.clients else set(half.mean)


def first_and_last(run: Run, metric: str) -> tuple[Record | None, Record | None]:
    """The records of the base (round 0) and of the last trained round, of those that measured the metric."""
    measured = [record for record in run.records if metric in half_metrics(record.eval)]
    base = next((record for record in measured if record.round == 0), None)
    trained = [record for record in measured if record.round > 0]
    return base, (trained[-1] if trained else None)


def purity(groups: Sequence[str], truth: Sequence[int]) -> float:
    """Share of clients whose type is the most frequent one in their group."""
    pairs = Counter(zip(groups, truth, strict=True))
    return sum(max(n for (g, _), n in pairs.items() if g == group) for group in set(groups)) / len(groups)


def adjusted_rand(groups: Sequence[str], truth: Sequence[int]) -> float | None:
    """Adjusted Rand index of two clusterings: 0 by chance, 1 if they are equal (Hubert and Arabie 1985).

    None where it is undefined: both clusterings have a single part, or both have only parts of one client.
    """
    together, first, second = (
        sum(comb(n, 2) for n in Counter(labels).values())
        for labels in (zip(groups, truth, strict=True), groups, truth)
    )
    chance, maximum = first * second / comb(len(groups), 2) if len(groups) > 1 else 0.0, (first + second) / 2
    return (together - chance) / (maximum - chance) if maximum != chance else None


def planted(run: Run) -> dict[int, int]:
    """client -> its planted type; empty if the types are unknown."""
    return {int(c): kind for c, kind in (run.manifest.get("truth") or {}).items()}


def by_key(estimates: list[Estimate]) -> Mapping[str, Estimate]:
    return {estimate.key: estimate for estimate in estimates}


def rows_by_client(half: Half) -> dict[int, int]:
    return {client: int(m["examples"]) for client, m in half.clients.items() if m.get("examples")}
