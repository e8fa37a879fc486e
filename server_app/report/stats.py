"""What a run's numbers are worth: intervals, the gain over the base, the worst client, the spread.

Accuracies over pooled rows: Wilson's score interval (Wilson 1927), which treats the rows as independent.
The gain: clients are resampled, not rows, because rows of one client resemble each other and every client is
its own before and after. Percentile bootstrap with Hesterberg's expanded percentiles (2015, "What Teachers
Should Know About the Bootstrap", section 4.2), which undo its narrowness at few clients.
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

PREFERENCE = "logps/accuracies"  # the model itself prefers the chosen answer
CHOICE = "accuracy"  # a selector or a reward model picks the chosen answer
LONGER = "length/accuracies"  # the longer answer is the chosen one
TOGETHER = "vote/accuracy"  # the soft vote of all selectors picks the chosen answer
ORDERS = "order_consistency"  # both orders of a pair lead to the same pick
EXPLICIT = "explicit/accuracies"  # a client's own reward head scores the chosen answer higher
COMBINED = "combined/accuracies"  # that and the implicit reward together do
TOKENS = "mean_token_accuracy"
CHOSEN = "logps/chosen"
VALID, RIGHT, UTILITY = "truth/valid", "truth/right", "truth/utility"  # tasks/scoring/truth.py
TRUTHS: Sequence[
    tuple[str, str, Literal["share", "number"]]
] = (  # of the model's own answers in a planted world
    (VALID, "Valid answers", "share"),
    (RIGHT, "Right facts", "share"),
    (UTILITY, "Utility of answers", "number"),
)
ACCURACIES = (PREFERENCE, CHOICE, TOKENS)  # what a run can be about; the first that was measured is
MIN_CLUSTERS = (
    6  # all clients fall on one side of the true median with probability 2^(1-C): above 5 % below 6
)
RESAMPLES = 10_000
METHOD_OF_GAINS = (
    f"Gain: 95 % bootstrap interval over clients ({RESAMPLES} paired resamples, expanded percentiles, "
    f"seeded); not given for fewer than {MIN_CLUSTERS} clients."
)
METHOD = (
    f"Accuracies: 95 % Wilson score interval over the pooled held-out rows. {METHOD_OF_GAINS} "
    "The worst client is selected after the fact, so it has no interval."
)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, where one is honest, and what stands behind it."""

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
    """A share over all held-out rows of all clients that measured it."""

    value: float
    rows: int


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % score interval of a share of `count` rows; the count of successes is rounded to a whole row."""
    assert count > 0, count
    assert 0 <= share <= 1, share
    from scipy.stats import binomtest  # slow to import

    interval = binomtest(round(share * count), count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def pooled(half: Half, metric: str) -> Pooled | None:
    """The row-weighted share; None where no client measured it."""
    counts = _rows(half)
    known = {client: value for client, value in half.by_client(metric).items() if counts.get(client)}
    if known:
        total = sum(counts[client] for client in known)
        return Pooled(sum(value * counts[client] for client, value in known.items()) / total, total)
    total = int(half.mean.get("examples", 0))
    return Pooled(half.mean[metric], total) if metric in half.mean and total else None


def worst(half: Half, metric: str) -> tuple[int, float] | None:
    """(client, value) of the lowest; the smaller id on a tie."""
    values = half.by_client(metric)
    client = min(values, key=lambda c: (values[c], c), default=None)
    return None if client is None else (client, values[client])


def spread(half: Half, metric: str) -> float | None:
    """Standard deviation over clients, unweighted (C - 1 in the denominator)."""
    values = list(half.by_client(metric).values())
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def gain(before: Half, after: Half, metric: str, *, seed: int) -> Estimate | None:
    """after - before over the clients that measured both, weighted by their rows after."""
    a, b, counts = before.by_client(metric), after.by_client(metric), _rows(after)
    both = [client for client in b if client in a and counts.get(client)]
    if not both:
        return None
    deltas = np.array([b[client] - a[client] for client in both])
    weights = np.array([counts[client] for client in both], float)
    low, high = cluster_interval(deltas, weights, seed=seed) if len(both) >= MIN_CLUSTERS else (None, None)
    value = float(deltas @ weights / weights.sum())
    return Estimate("gain", "Gain over the base", value, low, high, len(both), "clients", "points")


def cluster_interval(deltas: np.ndarray, weights: np.ndarray, *, seed: int) -> tuple[float, float]:
    """95 % interval of sum w d / sum w when the clients are a sample. deltas, weights: (C,), C >= 2."""
    from scipy.stats import norm, t  # slow to import

    count = len(deltas)
    tail = norm.cdf(np.sqrt(count / (count - 1)) * t.ppf(0.025, count - 1))
    rng = np.random.default_rng(seed_for(seed, "bootstrap"))
    means = []
    for _ in range(0, RESAMPLES, 500):  # in pieces: (500, C) at a time
        times = rng.multinomial(count, np.full(count, 1 / count), size=500)
        means.append(times @ (weights * deltas) / (times @ weights))
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def accuracy_metric(run: Run) -> str | None:
    """The accuracy this run is about: preference where pairs were held out, else of tokens."""
    for metric in ACCURACIES:
        if any(metric in half_metrics(record.eval) for record in run.records):
            return metric
    return None


def half_metrics(half: Half) -> set[str]:
    return set(half.mean).union(*half.clients.values()) if half.clients else set(half.mean)


def first_and_last(run: Run, metric: str) -> tuple[Record | None, Record | None]:
    """The record of the base (round 0) and of the latest trained round that measured the metric."""
    known = [record for record in run.records if metric in half_metrics(record.eval)]
    base = next((record for record in known if record.round == 0), None)
    trained = [record for record in known if record.round > 0]
    return base, (trained[-1] if trained else None)


def headline(run: Run) -> list[Estimate]:
    """The run in a few numbers, most important first; what was not measured is not in the list."""
    metric = accuracy_metric(run)
    found = _preference(run, metric) if metric in (PREFERENCE, CHOICE) else []
    found += _choices(run) if metric == CHOICE else []
    _, last = first_and_last(run, "rewards/accuracies")
    found.append(_share("reward", "Reward accuracy (TRL)", last, "rewards/accuracies"))
    found += _personal(run)
    found += _before_after(run, TOKENS, "Token accuracy", "share")
    found += _before_after(run, "loss", "Held-out loss", "number")
    for metric, name in (("rewards/margins", "Reward margin"), ("kl", "KL to the base")):
        _, last = first_and_last(run, metric)
        if last and metric in last.eval.mean:
            found.append(Estimate(metric, name, last.eval.mean[metric], n=rows(last.eval), unit="number"))
    found += _texts(run)
    found += _groups(run)
    found += _policies(run)
    return [estimate for estimate in found if estimate is not None]


def purity(groups: Sequence[str], truth: Sequence[int]) -> float:
    """The share of clients that are of the most frequent type of their group."""
    pairs = Counter(zip(groups, truth, strict=True))
    return sum(max(n for (g, _), n in pairs.items() if g == group) for group in set(groups)) / len(groups)


def adjusted_rand(groups: Sequence[str], truth: Sequence[int]) -> float | None:
    """Agreement of two partitions over pairs of clients, 0 by chance and 1 for the same (Hubert and Arabie 1985).

    None where neither of the two says anything: one part, or all alone, in both.
    """
    both, one, other = (
        sum(comb(n, 2) for n in Counter(parts).values())
        for parts in (zip(groups, truth, strict=True), groups, truth)
    )
    chance, most = one * other / comb(len(groups), 2) if len(groups) > 1 else 0.0, (one + other) / 2
    return (both - chance) / (most - chance) if most != chance else None


def planted(run: Run) -> dict[int, int]:
    """client -> its planted type, where those are known."""
    return {int(c): kind for c, kind in (run.manifest.get("truth") or {}).items()}


def _choices(run: Run) -> list[Estimate | None]:
    """What the selectors do together, and how far a selector can be trusted."""
    found: list[Estimate | None] = []
    _, last = first_and_last(run, TOGETHER)
    if last:
        name = f"All selectors together, round {last.round}"
        found.append(_share("population", name, last, TOGETHER))
        if low := worst(last.eval, TOGETHER):
            rows = _rows(last.eval).get(low[0])
            found.append(
                Estimate("population worst", f"Their worst client ({run.mark(low[0])})", low[1], n=rows)
            )
    base, last = first_and_last(run, ORDERS)
    found.append(_share("orders", "Both orders agree", last or base, ORDERS))
    base, last = first_and_last(run, "ece")
    if (record := last or base) and (error := pooled(record.eval, "ece")):
        found.append(Estimate("ece", "Calibration error (ECE)", error.value, n=error.rows, unit="points"))
    return found


def _policies(run: Run) -> list[Estimate | None]:
    """The best epoch of each policy: its answers to held-out prompts against the references'."""
    found: list[Estimate | None] = []
    for name, policy in run.policies.items():
        best = policy["epochs"][policy["best"]]
        for who, metric in (("judge", "win_rate"), ("judge", "accuracy"), ("signal", "win_rate")):
            if (share := best.get(f"{who}/{metric}")) is not None:
                n, pairs = int(best[f"{who}/n"]), metric == "accuracy"
                told = f"Policy {name}: {'public pairs' if pairs else f'wins by the {who}'}"
                of = "rows" if pairs else "prompts"
                found.append(Estimate(f"{who}/{metric} {name}", told, share, *wilson(share, n), n, of))
    return found


def _groups(run: Run) -> list[Estimate]:
    """How well the last groups are the planted types, where those are known."""
    routes = [record.route for record in run.records if record.route]
    truth = planted(run)
    both = sorted(routes[-1].keys() & truth.keys()) if routes else []
    if not both:
        return []
    groups, types = [routes[-1][c] for c in both], [truth[c] for c in both]
    found = [Estimate("purity", "Purity of the groups", purity(groups, types), n=len(both), of="clients")]
    if (index := adjusted_rand(groups, types)) is not None:
        name = "Adjusted Rand index of the groups"
        found.append(Estimate("rand", name, index, n=len(both), of="clients", unit="number"))
    return found


def rows(half: Half) -> int | None:
    """Held-out rows behind an evaluation; None if nobody counted."""
    return sum(_rows(half).values()) or int(half.mean.get("examples", 0)) or None


def _preference(run: Run, metric: str) -> list[Estimate | None]:
    base, last = first_and_last(run, metric)
    found = [_share("before", "Preference accuracy, base", base, metric)]
    if last:
        found.append(_share("after", f"Preference accuracy, round {last.round}", last, metric))
        if base:
            found.append(gain(base.eval, last.eval, metric, seed=int(run.manifest.get("seed", 0))))
        if low := worst(last.eval, metric):
            client, share = low
            found.append(
                Estimate("worst", f"Worst client ({run.mark(client)})", share, n=_rows(last.eval).get(client))
            )
        if (sd := spread(last.eval, metric)) is not None:
            n = len(last.eval.by_client(metric))
            found.append(Estimate("spread", "Std. dev. over clients", sd, n=n, of="clients", unit="points"))
    found.append(_share("longer", 'Baseline "longer answer wins"', last or base, LONGER))
    return found


def _personal(run: Run) -> list[Estimate | None]:
    """Of clients with a reward head of their own: alone, and together with the implicit reward."""
    _, last = first_and_last(run, COMBINED)
    if not last:
        return []
    found = [
        _share("explicit", "Explicit reward accuracy", last, EXPLICIT),
        _share("combined", "Combined accuracy", last, COMBINED),
    ]
    if low := worst(last.eval, COMBINED):
        client, share = low
        name = f"Combined, worst client ({run.mark(client)})"
        found.append(Estimate("combined worst", name, share, n=_rows(last.eval).get(client)))
    if (sd := spread(last.eval, COMBINED)) is not None:
        n, name = len(last.eval.by_client(COMBINED)), "Combined, std. dev. over clients"
        found.append(Estimate("combined spread", name, sd, n=n, of="clients", unit="points"))
    return found


def _before_after(
    run: Run, metric: str, name: str, unit: Literal["share", "number"]
) -> list[Estimate | None]:
    base, last = first_and_last(run, metric)
    halves = [("before", "base", base), ("after", f"round {last.round}" if last else "", last)]
    return [
        Estimate(f"{metric} {key}", f"{name}, {when}", r.eval.mean[metric], n=rows(r.eval), unit=unit)
        for key, when, r in halves
        if r and metric in r.eval.mean
    ]


def _texts(run: Run) -> list[Estimate | None]:
    """What became of the model as a writer: how likely it finds the chosen answers, how its own repeat themselves, and
    what those are worth where the truth is planted."""
    base, last = first_and_last(run, CHOSEN)
    found: list[Estimate | None] = []
    if base and last and CHOSEN in base.eval.mean and CHOSEN in last.eval.mean:
        change = last.eval.mean[CHOSEN] - base.eval.mean[CHOSEN]
        name = "Log-prob. of chosen answers, change"
        found.append(Estimate("chosen", name, change, n=rows(last.eval), unit="number"))
    for when, texts in (
        ("base", [a.before for a in run.answers]),
        ("trained", [a.after for a in run.answers]),
    ):
        if measured := repetition(texts):
            share, n = measured
            key = "repetition before" if when == "base" else "repetition after"
            found.append(Estimate(key, f"Repeated 4-grams, {when}", share, n=n, of="answers"))
    for metric, name, unit in TRUTHS:
        base, last = first_and_last(run, metric)
        for when, label, record in (("before", "base", base), ("after", "trained", last)):
            if record and metric in record.eval.mean:
                n = len(record.eval.by_client(metric)) or None
                value = record.eval.mean[metric]
                found.append(
                    Estimate(f"{metric} {when}", f"{name}, {label}", value, n=n, of="clients", unit=unit)
                )
    return found


def _share(key: str, name: str, record: Record | None, metric: str) -> Estimate | None:
    share = pooled(record.eval, metric) if record else None
    if share is None:
        return None
    possible = 0 <= share.value <= 1  # a client can report anything
    low, high = wilson(share.value, share.rows) if possible else (None, None)
    return Estimate(key, name, share.value, low, high, share.rows)


def _rows(half: Half) -> dict[int, int]:
    return {client: int(m["examples"]) for client, m in half.clients.items() if m.get("examples")}


def by_key(estimates: list[Estimate]) -> Mapping[str, Estimate]:
    return {estimate.key: estimate for estimate in estimates}
