"""Centralized: one client trains on the rows of all clients, with as many steps as the whole cohort would take.

The upper baseline of a federation at an equal budget of optimiser steps. For simulation only, since
it needs all rows in one place. Source: the usual oracle of federated papers. Deviations: none.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from core.sections import Config
from core.tree import add
from core.types import Client, Metrics, Order, OrderOption, ServerState
from strategies.aggregation.fold import Merged
from strategies.base import Strategy
from strategies.rounds.metrics import weighted_mean


@dataclass
class Centralized(Strategy):
    order_options: ClassVar[Mapping[str, OrderOption]] = {
        "rows": OrderOption(str, ("train",), own_rows=False),
        "steps-factor": OrderOption(int, ("train",), own_rows=False),
    }
    allows_private_parts: ClassVar[bool] = False

    def conflicts(self, config: Config) -> Iterator[str]:
        options = dict(config.source_choice.options)
        if "path" in options and not options["path"]:
            yield "strategy.name = 'centralized' needs every row in one place: set data.path"

    def plan_train(self, state: ServerState, rnd: int, cohort: list[Client]) -> list[Order]:
        options = {"rows": "all", "steps-factor": len(cohort)}
        return [Order(cohort[0].id, {"global": state.adapters["global"]}, options=options)]

    def merge_train(self, state: ServerState, rnd: int, merged: Merged) -> tuple[ServerState, Metrics]:
        adapters = {"global": add(state.adapters["global"], merged.trees["global"]["delta"])}
        return replace(state, adapters=adapters), weighted_mean(merged.updates)


PLUGIN = Centralized
