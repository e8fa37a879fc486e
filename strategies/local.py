"""Local: every client trains alone, from the same start and with the same steps; shows whether federating helps.

Source: the `local` rows of OpenFedLLM, Tables 2 and 4 (arXiv:2402.06954). Deviation: every client trains
and is scored with its own adapter, where the original trains one chosen client.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from core.types import Metrics, ServerState
from strategies.aggregation.fold import Merged
from strategies.base import Strategy
from strategies.clients.rule import ClientRule
from strategies.rounds.metrics import weighted_mean


def share_nothing(name: str, rnd: int) -> bool:
    return False


@dataclass
class Local(Strategy):
    server_learns: ClassVar[bool] = False

    def merge_train(self, state: ServerState, rnd: int, merged: Merged) -> tuple[ServerState, Metrics]:
        return state, weighted_mean(merged.updates)

    def client_rule(self, rule: ClientRule) -> ClientRule:
        return replace(rule, shares=share_nothing)


PLUGIN = Local
