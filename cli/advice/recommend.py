"""Federate, cluster or personalise? Compare the options over the same clients and recommend one.

The options are ordered from the simplest to the most complex. Intervals are `stats.cluster_interval` of the clients'
paired differences: one client is one observation, however many rows it holds out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from core.errors import DataError
from server_app.report.formatting import counted, percent, points
from server_app.report.reading import Run
from server_app.report.stats import (
    COMBINED,
    MIN_CLUSTERS,
    PREFERENCE,
    Estimate,
    cluster_interval,
    first_and_last,
)

LOCAL, FEDAVG, FINISH, CLUSTERS, FEDPDPO = "local", "fedavg", "finish", "clusters", "fedpdpo"
ORDER = (LOCAL, FEDAVG, FINISH, CLUSTERS, FEDPDPO)  # simplest first
NAMES = {
    LOCAL: "each client alone",
    FEDAVG: "FedAvg",
    FINISH: "FedAvg, then alone",
    CLUSTERS: "clusters (FedBiscuit)",
    FEDPDPO: "FedPDPO",
}
NO_DIFFERENCE = "no difference shown"
Scores = Mapping[int, float]  # client -> held-out preference accuracy of the model it would use


@dataclass(frozen=True)
class Results:
    """The results of one option."""

    scores: Scores
    base: Scores  # before any training
    combined: Scores  # implicit and explicit reward together; empty without an explicit reward


@dataclass(frozen=True)
class Advice:
    """A recommendation.

    word: federate | cluster into k | personalise | stay local | no difference shown. option: the recommended one of
    ORDER; each client alone if there is no recommendation.
    """

    word: str
    option: str
    reason: str

    @property
    def is_conclusive(self) -> bool:
        """Whether an option is recommended."""
        return self.word != NO_DIFFERENCE


def read_results(run: Run) -> Results:
    """The last scores of a finished run. Raises DataError if there are none."""
    base, last = first_and_last(run, PREFERENCE)
    if last is None or not last.eval.by_client(PREFERENCE):
        raise DataError(f"{run.dir}: expected {PREFERENCE} of each client after the last round, found none")
    before = base.eval.by_client(PREFERENCE) if base else {}
    return Results(last.eval.by_client(PREFERENCE), before, last.eval.by_client(COMBINED))


def gain(baseline: Scores, scores: Scores, name: str = "", *, seed: int) -> Estimate:
    """The mean over clients of scores - baseline, paired; without an interval below MIN_CLUSTERS clients.

    Raises DataError if no client has both.
    """
    clients = sorted(scores.keys() & baseline.keys())
    if not clients:
        raise DataError("two options cannot be compared: no client in common has scores of both")
    deltas = np.array([scores[c] - baseline[c] for c in clients])
    low, high = None, None
    if len(clients) >= MIN_CLUSTERS:
        low, high = cluster_interval(deltas, np.ones(len(clients)), seed=seed)
    return Estimate("gain", name, float(deltas.mean()), low, high, len(clients), "clients", "points")


def harmed(alone: Scores, scores: Scores) -> Estimate | None:
    """Share of clients that score lower than alone; None if no client has both scores."""
    clients = scores.keys() & alone.keys()
    if not clients:
        return None
    worse = sum(scores[c] < alone[c] for c in clients)
    return Estimate("harmed", "Clients harmed", worse / len(clients), n=len(clients), of="clients")


def mean(scores: Scores) -> float:
    """The unweighted mean over clients."""
    return sum(scores.values()) / len(scores)


def is_significant(estimate: Estimate) -> bool:
    """Whether the whole interval of a gain is above 0."""
    return estimate.low is not None and estimate.low > 0


def choose(scores: Mapping[str, Scores], *, seed: int) -> str | None:
    """The option whose gain justifies its complexity; None if no difference is significant.

    From the simplest option on, an option replaces the one chosen so far if its gain over that is significant and its
    mean gain over every simpler option is positive. Each client alone is chosen only if it is significantly better than
    FedAvg. scores: of each option in ORDER.
    """
    best = LOCAL
    for option in ORDER[1:]:
        simpler = ORDER[: ORDER.index(option)]
        is_highest = all(gain(scores[s], scores[option], seed=seed).value > 0 for s in simpler)
        if is_highest and is_significant(gain(scores[best], scores[option], seed=seed)):
            best = option
    if best == LOCAL and not is_significant(gain(scores[FEDAVG], scores[LOCAL], seed=seed)):
        return None
    return best


def too_few(clients: int) -> str:
    """Why fewer than MIN_CLUSTERS clients give no recommendation."""
    verb = "is" if clients == 1 else "are"
    return f"{counted(clients, 'client')} {verb} too few for an interval; at least {MIN_CLUSTERS} are needed."


def advise(scores: Mapping[str, Scores], selectors: int, *, seed: int) -> Advice:
    """The recommendation and its reason. selectors: number of selectors of the option `clusters`."""
    option = choose(scores, seed=seed)
    clients = len(set.intersection(*(set(s) for s in scores.values())))
    if option is None:
        if clients < MIN_CLUSTERS:
            reason = too_few(clients)
        else:
            reason = (
                "No option is better than each client alone by more than variation between clients would explain; "
                f"FedAvg compared with each client alone: {_gain_text(scores, FEDAVG, LOCAL, seed)}."
            )
        return Advice(NO_DIFFERENCE, LOCAL, reason)
    if option == LOCAL:
        reason = f"Each client alone is better than FedAvg by {_gain_text(scores, LOCAL, FEDAVG, seed)}"
        return Advice("stay local", option, f"{reason}, and no option is significantly better than that.")
    word = {
        FEDAVG: "federate",
        FINISH: "personalise",
        CLUSTERS: f"cluster into {selectors}",
        FEDPDPO: "personalise",
    }[option]
    baselines = [LOCAL, *([FEDAVG] if option != FEDAVG else [])]
    gains = " and ".join(
        f"than {NAMES[baseline]} by {_gain_text(scores, option, baseline, seed)}" for baseline in baselines
    )
    reason = f"{NAMES[option][0].upper()}{NAMES[option][1:]} is better {gains}."
    best = max(ORDER, key=lambda name: mean(scores[name]))
    if best != option:
        reason += (
            f" {NAMES[best][0].upper()}{NAMES[best][1:]} measured {percent(mean(scores[best]))} against "
            f"{percent(mean(scores[option]))}, but the difference is not significant."
        )
    return Advice(word, option, reason)


def differences(scores: Mapping[str, Scores], *, seed: int) -> dict[tuple[str, str], Estimate]:
    """(simpler, more complex) -> the gain of the second over the first."""
    return {(a, b): gain(scores[a], scores[b], seed=seed) for a, b in combinations(ORDER, 2)}


def _gain_text(scores: Mapping[str, Scores], option: str, baseline: str, seed: int) -> str:
    estimate = gain(scores[baseline], scores[option], seed=seed)
    interval = (
        ""
        if estimate.low is None or estimate.high is None
        else f" (95 %: {points(estimate.low)} to {points(estimate.high)})"
    )
    return f"{points(estimate.value)} points{interval}"
