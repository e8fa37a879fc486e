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
from server_app.report.repetition import repetition

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
# metrics of the model's own answers where the truth is planted: key, name, unit
TRUTHS: Sequence[tuple[str, str, Literal["share", "number"]]] = (
    (VALID, "Valid answers", "share"),
    (RIGHT, "Right facts", "share"),
    (UTILITY, "Utility of answers", "number"),
)
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


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share of `count` rows; the number of successes is rounded to an integer."""
    assert count > 0, count
    assert 0 <= share <= 1, share
    from scipy.stats import binomtest  # slow to import

    interval = binomtest(round(share * count), count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def pooled(half: Half, metric: str) -> Pooled | None:
    """The row-weighted mean of a metric over clients; None if no client measured it."""
    counts = _rows_by_client(half)
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
    a, b, counts = before.by_client(metric), after.by_client(metric), _rows_by_client(after)
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


def headline(run: Run) -> list[Estimate]:
    """The main results of the run, most important first; what was not measured is not in the list."""
    metric = accuracy_metric(run)
    estimates = _accuracy_estimates(run, metric) if metric in (PREFERENCE, CHOICE) else []
    estimates += _selector_estimates(run) if metric == CHOICE else []
    _, last = first_and_last(run, "rewards/accuracies")
    estimates.append(_share_estimate("reward", "Reward accuracy (TRL)", last, "rewards/accuracies"))
    estimates += _personal_estimates(run)
    estimates += _before_after_estimates(run, TOKENS, "Token accuracy", "share")
    estimates += _before_after_estimates(run, "loss", "Held-out loss", "number")
    for metric, name in (("rewards/margins", "Reward margin"), ("kl", "KL to the base")):
        _, last = first_and_last(run, metric)
        if last and metric in last.eval.mean:
            estimates.append(Estimate(metric, name, last.eval.mean[metric], n=rows(last.eval), unit="number"))
    estimates += _text_estimates(run)
    estimates += _group_estimates(run)
    estimates += _policy_estimates(run)
    return [estimate for estimate in estimates if estimate is not None]


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


def _selector_estimates(run: Run) -> list[Estimate | None]:
    """The joint vote of all selectors, and how consistent and calibrated a selector is."""
    estimates: list[Estimate | None] = []
    _, last = first_and_last(run, TOGETHER)
    if last:
        name = f"Vote of all selectors, round {last.round}"
        estimates.append(_share_estimate("population", name, last, TOGETHER))
        if lowest := worst(last.eval, TOGETHER):
            rows = _rows_by_client(last.eval).get(lowest[0])
            estimates.append(
                Estimate("population worst", f"Vote, worst client ({run.mark(lowest[0])})", lowest[1], n=rows)
            )
    base, last = first_and_last(run, ORDERS)
    estimates.append(_share_estimate("orders", "Both orders agree", last or base, ORDERS))
    base, last = first_and_last(run, "ece")
    if (record := last or base) and (error := pooled(record.eval, "ece")):
        estimates.append(Estimate("ece", "Calibration error (ECE)", error.value, n=error.rows, unit="points"))
    return estimates


def _policy_estimates(run: Run) -> list[Estimate | None]:
    """Win rates of each policy's best epoch over the reference answers on held-out prompts."""
    estimates: list[Estimate | None] = []
    for name, policy in run.policies.items():
        best = policy["epochs"][policy["best"]]
        for scorer, metric in (("judge", "win_rate"), ("judge", "accuracy"), ("signal", "win_rate")):
            if (share := best.get(f"{scorer}/{metric}")) is not None:
                n, pairs = int(best[f"{scorer}/n"]), metric == "accuracy"
                title = f"Policy {name}: {'public pairs' if pairs else f'win rate ({scorer})'}"
                unit = "rows" if pairs else "prompts"
                estimates.append(
                    Estimate(f"{scorer}/{metric} {name}", title, share, *wilson(share, n), n, unit)
                )
    return estimates


def _group_estimates(run: Run) -> list[Estimate]:
    """Agreement of the last grouping with the planted types, if those are known."""
    routes = [record.route for record in run.records if record.route]
    truth = planted(run)
    clients = sorted(routes[-1].keys() & truth.keys()) if routes else []
    if not clients:
        return []
    groups, types = [routes[-1][c] for c in clients], [truth[c] for c in clients]
    estimates = [
        Estimate("purity", "Purity of the groups", purity(groups, types), n=len(clients), of="clients")
    ]
    if (index := adjusted_rand(groups, types)) is not None:
        name = "Adjusted Rand index of the groups"
        estimates.append(Estimate("rand", name, index, n=len(clients), of="clients", unit="number"))
    return estimates


def rows(half: Half) -> int | None:
    """Number of held-out rows of an evaluation; None if it was not reported."""
    return sum(_rows_by_client(half).values()) or int(half.mean.get("examples", 0)) or None


def _accuracy_estimates(run: Run, metric: str) -> list[Estimate | None]:
    base, last = first_and_last(run, metric)
    estimates = [_share_estimate("before", "Preference accuracy, base", base, metric)]
    if last:
        estimates.append(_share_estimate("after", f"Preference accuracy, round {last.round}", last, metric))
        if base:
            estimates.append(gain(base.eval, last.eval, metric, seed=int(run.manifest.get("seed", 0))))
        if lowest := worst(last.eval, metric):
            client, share = lowest
            estimates.append(
                Estimate(
                    "worst",
                    f"Worst client ({run.mark(client)})",
                    share,
                    n=_rows_by_client(last.eval).get(client),
                )
            )
        if (sd := spread(last.eval, metric)) is not None:
            n = len(last.eval.by_client(metric))
            estimates.append(
                Estimate("spread", "Std. dev. over clients", sd, n=n, of="clients", unit="points")
            )
    estimates.append(_share_estimate("longer", 'Baseline "longer answer wins"', last or base, LONGER))
    return estimates


def _personal_estimates(run: Run) -> list[Estimate | None]:
    """Accuracy of the clients' private reward heads: explicit reward alone, and combined with the implicit reward."""
    _, last = first_and_last(run, COMBINED)
    if not last:
        return []
    estimates = [
        _share_estimate("explicit", "Explicit reward accuracy", last, EXPLICIT),
        _share_estimate("combined", "Combined accuracy", last, COMBINED),
    ]
    if lowest := worst(last.eval, COMBINED):
        client, share = lowest
        name = f"Combined, worst client ({run.mark(client)})"
        estimates.append(Estimate("combined worst", name, share, n=_rows_by_client(last.eval).get(client)))
    if (sd := spread(last.eval, COMBINED)) is not None:
        n, name = len(last.eval.by_client(COMBINED)), "Combined, std. dev. over clients"
        estimates.append(Estimate("combined spread", name, sd, n=n, of="clients", unit="points"))
    return estimates


def _before_after_estimates(
    run: Run, metric: str, name: str, unit: Literal["share", "number"]
) -> list[Estimate | None]:
    base, last = first_and_last(run, metric)
    halves = [("before", "base", base), ("after", f"round {last.round}" if last else "", last)]
    return [
        Estimate(f"{metric} {key}", f"{name}, {when}", r.eval.mean[metric], n=rows(r.eval), unit=unit)
        for key, when, r in halves
        if r and metric in r.eval.mean
    ]


def _text_estimates(run: Run) -> list[Estimate | None]:
    """Quality of the model's text: log-probability of chosen answers, repetition in its own answers, and their planted
    worth, where known."""
    base, last = first_and_last(run, CHOSEN)
    estimates: list[Estimate | None] = []
    if base and last and CHOSEN in base.eval.mean and CHOSEN in last.eval.mean:
        change = last.eval.mean[CHOSEN] - base.eval.mean[CHOSEN]
        name = "Log-prob. of chosen answers, change"
        estimates.append(Estimate("chosen", name, change, n=rows(last.eval), unit="number"))
    for when, texts in (
        ("base", [a.before for a in run.answers]),
        ("trained", [a.after for a in run.answers]),
    ):
        if measured := repetition(texts):
            share, n = measured
            key = "repetition before" if when == "base" else "repetition after"
            estimates.append(Estimate(key, f"Repeated 4-grams, {when}", share, n=n, of="answers"))
    for metric, name, unit in TRUTHS:
        base, last = first_and_last(run, metric)
        for when, label, record in (("before", "base", base), ("after", "trained", last)):
            if record and metric in record.eval.mean:
                n = len(record.eval.by_client(metric)) or None
                value = record.eval.mean[metric]
                estimates.append(
                    Estimate(f"{metric} {when}", f"{name}, {label}", value, n=n, of="clients", unit=unit)
                )
    return estimates


def _share_estimate(key: str, name: str, record: Record | None, metric: str) -> Estimate | None:
    share = pooled(record.eval, metric) if record else None
    if share is None:
        return None
    possible = 0 <= share.value <= 1  # client reports are untrusted
    low, high = wilson(share.value, share.rows) if possible else (None, None)
    return Estimate(key, name, share.value, low, high, share.rows)


def _rows_by_client(half: Half) -> dict[int, int]:
    return {client: int(m["examples"]) for client, m in half.clients.items() if m.get("examples")}


def by_key(estimates: list[Estimate]) -> Mapping[str, Estimate]:
    return {estimate.key: estimate for estimate in estimates}
