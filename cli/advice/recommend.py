"""Federate, cluster or personalise? Every option against the others over the same clients, and what follows.

The options stand from the simplest to the most complex. Intervals are `stats.cluster_interval` of the clients' paired
differences: one client is one observation, however many rows it holds out.
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
class Measured:
    """What one option came to."""

    scores: Scores
    base: Scores  # of the same clients before any training
    combined: Scores  # implicit and explicit reward together; empty where there is no such reward


@dataclass(frozen=True)
class Advice:
    """`word`: federate | cluster into k | personalise | stay local | no difference shown. `option`: what it means."""

    word: str
    option: str
    reason: str

    @property
    def shown(self) -> bool:
        return self.word != NO_DIFFERENCE


def measured(run: Run) -> Measured:
    """The last scores of a finished run; DataError without any."""
    base, last = first_and_last(run, PREFERENCE)
    if last is None or not last.eval.by_client(PREFERENCE):
        raise DataError(f"{run.dir}: expected {PREFERENCE} of each client after the last round, found none")
    before = base.eval.by_client(PREFERENCE) if base else {}
    return Measured(last.eval.by_client(PREFERENCE), before, last.eval.by_client(COMBINED))


def gain(over: Scores, scores: Scores, name: str = "", *, seed: int) -> Estimate:
    """The mean over clients of scores - over, paired; no interval below MIN_CLUSTERS clients."""
    both = sorted(scores.keys() & over.keys())
    if not both:
        raise DataError("two options have no client in common that scored both")
    deltas = np.array([scores[c] - over[c] for c in both])
    low, high = None, None
    if len(both) >= MIN_CLUSTERS:
        low, high = cluster_interval(deltas, np.ones(len(both)), seed=seed)
    return Estimate("gain", name, float(deltas.mean()), low, high, len(both), "clients", "points")


def harmed(alone: Scores, scores: Scores) -> Estimate | None:
    """The share of clients that score less than alone; None without a client that has both."""
    both = scores.keys() & alone.keys()
    if not both:
        return None
    worse = sum(scores[c] < alone[c] for c in both)
    return Estimate("harmed", "Clients harmed", worse / len(both), n=len(both), of="clients")


def mean(scores: Scores) -> float:
    """Every client counts alike."""
    return sum(scores.values()) / len(scores)


def shown(estimate: Estimate) -> bool:
    """Whether a gain is above 0 with its whole interval."""
    return estimate.low is not None and estimate.low > 0


def choose(scores: Mapping[str, Scores], *, seed: int) -> str | None:
    """The option that is worth its complexity, None if no difference is shown; scores: of each option in ORDER.

    Up from the simplest: an option takes the place of the one chosen so far if its gain over that is shown and no
    simpler option has a higher mean. Each client alone is an answer only where it is shown to be better than FedAvg.
    """
    best = LOCAL
    for option in ORDER[1:]:
        simpler = ORDER[: ORDER.index(option)]
        highest = all(gain(scores[s], scores[option], seed=seed).value > 0 for s in simpler)
        if highest and shown(gain(scores[best], scores[option], seed=seed)):
            best = option
    if best == LOCAL and not shown(gain(scores[FEDAVG], scores[LOCAL], seed=seed)):
        return None
    return best


def too_few(clients: int) -> str:
    """Why fewer than MIN_CLUSTERS clients show no difference."""
    are = "is" if clients == 1 else "are"
    return f"{counted(clients, 'client')} {are} too few for an interval; at least {MIN_CLUSTERS} are needed."


def advise(scores: Mapping[str, Scores], selectors: int, *, seed: int) -> Advice:
    """The recommendation in words. selectors: of the option clusters."""
    option = choose(scores, seed=seed)
    clients = len(set.intersection(*(set(s) for s in scores.values())))
    if option is None:
        if clients < MIN_CLUSTERS:
            why = too_few(clients)
        else:
            why = (
                "No option is better than each client alone by more than the variation between clients explains; "
                f"FedAvg over each client alone: {_by(scores, FEDAVG, LOCAL, seed)}."
            )
        return Advice(NO_DIFFERENCE, LOCAL, why)
    if option == LOCAL:
        why = f"Each client alone is better than FedAvg by {_by(scores, LOCAL, FEDAVG, seed)}"
        return Advice("stay local", option, f"{why}, and nothing is shown to be better than that.")
    word = {
        FEDAVG: "federate",
        FINISH: "personalise",
        CLUSTERS: f"cluster into {selectors}",
        FEDPDPO: "personalise",
    }[option]
    others = [LOCAL, *([FEDAVG] if option != FEDAVG else [])]
    gains = " and ".join(f"than {NAMES[o]} by {_by(scores, option, o, seed)}" for o in others)
    why = f"{NAMES[option][0].upper()}{NAMES[option][1:]} is better {gains}."
    best = max(ORDER, key=lambda o: mean(scores[o]))
    if best != option:
        why += (
            f" {NAMES[best][0].upper()}{NAMES[best][1:]} measured {percent(mean(scores[best]))} against "
            f"{percent(mean(scores[option]))}, a difference that is not shown."
        )
    return Advice(word, option, why)


def differences(scores: Mapping[str, Scores], *, seed: int) -> dict[tuple[str, str], Estimate]:
    """(simpler, more complex) -> the gain of the second over the first."""
    return {(a, b): gain(scores[a], scores[b], seed=seed) for a, b in combinations(ORDER, 2)}


def _by(scores: Mapping[str, Scores], option: str, other: str, seed: int) -> str:
    found = gain(scores[other], scores[option], seed=seed)
    sure = (
        ""
        if found.low is None or found.high is None
        else f" (95 %: {points(found.low)} to {points(found.high)})"
    )
    return f"{points(found.value)} points{sure}"
