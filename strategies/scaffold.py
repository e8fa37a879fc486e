"""SCAFFOLD: steps corrected by control variates. Karimireddy et al. 2020, Algorithm 1 (arXiv:1910.06378).

x' = x + eta_g mean_k (y_k - x), c' = c + (1/N) sum_k (c_k' - c_k), N: clients of the federation, not of the round.
The client's part and its two variants are in strategies/clients/control_variates.py; docs/aggregators.md says what
quantity is controlled and why. flwr 1.39 has no SCAFFOLD, so there is no variant `flower`.
Deviations: paper: with control-variate = "gradients" (the default) c_k' is the mean gradient itself, where option II
estimates it from plain SGD's steps; openfedllm: the mean of the deltas is weighted by examples, as there.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from core.errors import ConfigError
from core.tree import Tree, add, scale
from core.types import Client, Metrics, Order, ServerState, Update
from strategies.aggregation.fold import Merged, Share
from strategies.clients.control_variates import CONTROL, scaffold_rule
from strategies.clients.rule import ClientRule
from strategies.fedavg import FedAvg


@dataclass
class Scaffold(FedAvg):
    control_variate: str = (
        "gradients"  # variant paper: gradients (correct with any optimiser) | steps (option II, for SGD)
    )

    allows_private_parts: ClassVar[bool] = False
    own_weighting: ClassVar[dict[str, str]] = {"paper": "uniform", "openfedllm": "examples"}
    own_learning_rate: ClassVar[dict[str, float]] = {"paper": 1.0, "openfedllm": 1.0}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.control_variate not in ("gradients", "steps"):
            raise ConfigError(
                f"strategy.control-variate must be one of gradients | steps, got {self.control_variate!r}"
            )
        if self.robust != "none":
            raise ConfigError(
                f"strategy.robust = {self.robust!r} cannot be combined with strategy.name = 'scaffold': "
                "controls are summed, so a hostile one cannot be left out; use strategy.clip-norm or another strategy"
            )

    def init(self, adapters: dict[str, Tree], seed: int) -> ServerState:
        state = super().init(adapters, seed)
        zero = {name: torch.zeros_like(t) for name, t in adapters["global"].items()}
        return replace(state, memory={**state.memory, CONTROL: zero})

    def client_rule(self, rule: ClientRule) -> ClientRule:
        if self.variant == "openfedllm":
            return scaffold_rule("openfedllm", "steps", super().client_rule(rule))
        control = "steps" if self.control_variate == "steps" else "gradients"
        return scaffold_rule("paper", control, super().client_rule(rule))

    def plan_train(self, state: ServerState, rnd: int, cohort: list[Client]) -> list[Order]:
        orders = super().plan_train(state, rnd, cohort)
        return [replace(o, trees={**o.trees, CONTROL: state.memory[CONTROL]}) for o in orders]

    def share(self, update: Update, name: str) -> Share:
        return Share(1.0) if name == CONTROL else super().share(update, name)

    def merge_train(self, state: ServerState, rnd: int, merged: Merged) -> tuple[ServerState, Metrics]:
        control = state.memory[CONTROL]
        after, metrics = super().merge_train(state, rnd, merged)
        for trees in merged.trees.values():
            change = scale(trees[CONTROL], len(merged.updates) / state.clients)
            control = {**control, **add({name: control[name] for name in change}, change)}
        return replace(after, memory={**after.memory, CONTROL: control}), metrics


PLUGIN = Scaffold
