"""The headline of a run: its main results as estimates, with intervals where they are valid."""

from collections.abc import Sequence
from typing import Literal

from server_app.report.reading import Half, Record, Run
from server_app.report.repetition import repetition
from server_app.report.stats import (
    CHOICE,
    CHOSEN,
    COMBINED,
    EXPLICIT,
    LONGER,
    ORDERS,
    PREFERENCE,
    RIGHT,
    TOGETHER,
    TOKENS,
    UTILITY,
    VALID,
    Estimate,
    accuracy_metric,
    adjusted_rand,
    first_and_last,
    gain,
    planted,
    pooled,
    purity,
    rows_by_client,
    spread,
    wilson,
    worst,
)

# metrics of the model's own answers where the truth is planted: key, name, unit
TRUTHS: Sequence[tuple[str, str, Literal["share", "number"]]] = (
    (VALID, "Valid answers", "share"),
    (RIGHT, "Right facts", "share"),
    (UTILITY, "Utility of answers", "number"),
)


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


def _selector_estimates(run: Run) -> list[Estimate | None]:
    """The joint vote of all selectors, and how consistent and calibrated a selector is."""
    estimates: list[Estimate | None] = []
    _, last = first_and_last(run, TOGETHER)
    if last:
        name = f"Vote of all selectors, round {last.round}"
        estimates.append(_share_estimate("population", name, last, TOGETHER))
        if lowest := worst(last.eval, TOGETHER):
            rows = rows_by_client(last.eval).get(lowest[0])
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
                    n=rows_by_client(last.eval).get(client),
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
        estimates.append(Estimate("combined worst", name, share, n=rows_by_client(last.eval).get(client)))
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


def rows(half: Half) -> int | None:
    """Number of held-out rows of an evaluation; None if it was not reported."""
    return sum(rows_by_client(half).values()) or int(half.mean.get("examples", 0)) or None
