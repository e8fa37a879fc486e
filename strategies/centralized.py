"""Centralized: one client trains on the rows of all clients, with as many steps as the whole cohort would take.

The upper baseline of a federation at an equal budget of optimiser steps. For simulation only, since
it needs all rows in one place. Source: the usual oracle of federated papers. Deviations: none.
"""

from dataclasses import dataclass, replace

from core.tree import add
from core.types import Client, Metrics, Order, ServerState
from strategies.aggregation.fold import Merged
from strategies.base import Strategy
from strategies.rounds.metrics import weighted_mean


@dataclass
class Centralized(Strategy):
    def plan_train(self, state: ServerState, rnd: int, cohort: list[Client]) -> list[Order]:
        knobs = {"rows": "all", "steps-factor": len(cohort)}
        return [Order(cohort[0].id, {"global": state.adapters["global"]}, knobs=knobs)]

    def merge_train(self, state: ServerState, rnd: int, merged: Merged) -> tuple[ServerState, Metrics]:
        adapters = {"global": add(state.adapters["global"], merged.trees["global"]["delta"])}
        return replace(state, adapters=adapters), weighted_mean(merged.updates)


PLUGIN = Centralized
