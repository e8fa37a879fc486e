"""FedAvg: x' = x + eta sum_k w_k (y_k - x). McMahan et al. 2017, Algorithm 1 (arXiv:1602.05629), eta = 1.

The variants agree: `openfedllm` (sum of w_k y_k) and `flower` compute the same; w_k = n_k / sum n.
Deviations: LoRA's A and B are averaged as separate tensors, so the mean of the products B A is not the
product of the means (`lora.aggregation` offers methods for products, strategies/aggregation/lora.py); local steps use
AdamW where the paper has SGD.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

from core.errors import ConfigError
from core.sections import LoraConfig, StrategyConfig
from core.tree import Tree
from core.types import Client, Metrics, Order, OrderOption, ServerState, Update
from strategies.aggregation.fold import Fold, Mean, Merged, Share
from strategies.aggregation.lora import Lora
from strategies.aggregation.robust import RULES, Robust, RobustRule
from strategies.aggregation.server_opt import ServerOpt, check_variant, plain
from strategies.base import Strategy
from strategies.clients.rule import FINISH, ClientRule
from strategies.rounds.metrics import weighted_mean
from strategies.rounds.weighting import WEIGHTINGS, smallest_cohort, weight


@dataclass
class FedAvg(Strategy):
    variant: str = "paper"  # numerics: paper | openfedllm | flower
    weighting: str = (
        "auto"  # w_k is proportional to: examples | tokens | uniform (1); auto: the variant's default
    )
    server_learning_rate: float = 0.0  # eta; 0: the variant's default
    clip_norm: float = 0.0  # deltas with a larger norm are scaled down to it; 0: no clipping
    robust: str = "none"  # none | median | trimmed-mean | krum | multi-krum; these ignore weights
    robust_fraction: float = (
        0.2  # of clients: cut at each end (trimmed-mean), assumed hostile (krum, multi-krum)
    )
    finish_steps: int = 0  # local optimiser steps of every client after the last round, which are not sent
    lora: Lora = field(default_factory=Lora)  # not an option of the strategy: set from lora.* by with_lora()

    order_options: ClassVar[Mapping[str, OrderOption]] = {FINISH: OrderOption(int, ("evaluate",))}
    own_weighting: ClassVar[dict[str, str]] = dict.fromkeys(("paper", "openfedllm", "flower"), "examples")
    own_learning_rate: ClassVar[dict[str, float]] = dict.fromkeys(("paper", "openfedllm", "flower"), 1.0)

    def __post_init__(self) -> None:
        check_variant(self.variant)
        if self.variant not in self.own_weighting:
            raise ConfigError(
                f"strategy.variant = {self.variant!r}: {type(self).__name__.lower()} has "
                f"{' | '.join(self.own_weighting)}"
            )
        if self.weighting not in WEIGHTINGS:
            raise ConfigError(
                f"strategy.weighting must be one of {' | '.join(WEIGHTINGS)}, got {self.weighting!r}"
            )
        for key, value in (
            ("server-learning-rate", self.server_learning_rate),
            ("clip-norm", self.clip_norm),
            ("finish-steps", self.finish_steps),
        ):
            if value < 0:
                raise ConfigError(f"strategy.{key} must not be negative, got {value!r}")
        self._check_robust()

    def _check_robust(self) -> None:
        if self.robust not in ("none", *RULES):
            raise ConfigError(
                f"strategy.robust must be one of none | {' | '.join(RULES)}, got {self.robust!r}"
            )
        if not 0 <= self.robust_fraction < 0.5:
            raise ConfigError(f"strategy.robust-fraction must be in [0, 0.5), got {self.robust_fraction!r}")
        if self.robust != "none" and self.weighting not in ("auto", "uniform"):
            raise ConfigError(
                f"strategy.robust = {self.robust!r} ignores weights, but strategy.weighting = "
                f"{self.weighting!r}; set strategy.weighting = 'auto'"
            )

    def with_lora(self, lora: LoraConfig) -> Self:
        built = replace(self, lora=Lora.read(lora))
        built._check_products()
        return built

    def _check_products(self) -> None:
        """Product aggregation computes the next adapter directly, so it cannot be combined with a server optimiser.

        Raises ConfigError for this and other combinations.
        """
        if not self.lora.by_product:
            return
        name, method = type(self).__name__.lower(), f"lora.aggregation = {self.lora.aggregation!r}"
        is_used = {
            f"the server optimiser of strategy.name = {name!r}": type(self).server_opt
            is not FedAvg.server_opt,
            f"strategy.server-learning-rate = {self.server_learning_rate}": self.eta != 1.0,
            f"strategy.robust = {self.robust!r}": self.robust != "none",
            f"what clients of strategy.name = {name!r} send besides deltas": self.local_rule().sends
            != ("delta",),
            f"lora.client-ranks with the local steps of strategy.name = {name!r}": bool(
                self.lora.client_ranks
            )
            and not self.local_rule().plain,
        }
        if reasons := [option for option, used in is_used.items() if used]:
            raise ConfigError(
                f"{method} cannot be combined with {reasons[0]}; use strategy.name = 'fedavg' with its defaults, or "
                "lora.aggregation = separate | ffa | rolora | fedsa"
            )

    @property
    def eta(self) -> float:
        return self.server_learning_rate or self.own_learning_rate[self.variant]

    def server_opt(self) -> ServerOpt:
        """Return the server optimiser, which moves an adapter by the mean delta."""
        return plain(self.eta)

    @property
    def effective_weighting(self) -> str:
        """What w_k is proportional to, with 'auto' resolved."""
        return self.own_weighting[self.variant] if self.weighting == "auto" else self.weighting

    def share(self, update: Update, name: str) -> Share:
        """Return the weight of an update's tree in the mean, and the factor that clips it."""
        return Share(weight(update, self.effective_weighting), self.clip(update) if name == "delta" else 1.0)

    def clip(self, update: Update) -> float:
        """Return the factor that scales a delta's norm down to clip_norm."""
        size = update.metrics["norm/delta"]
        return self.clip_norm / size if self.clip_norm and size > self.clip_norm else 1.0

    def lora_rule(self) -> ClientRule:
        return self.lora.rule

    def plan_train(self, state: ServerState, rnd: int, cohort: list[Client]) -> list[Order]:
        return self.lora.orders(state, super().plan_train(state, rnd, cohort))

    def plan_evaluate(self, state: ServerState, rnd: int, everyone: list[Client]) -> list[Order]:
        return self.with_finish(
            state, rnd, self.lora.orders(state, super().plan_evaluate(state, rnd, everyone))
        )

    def with_finish(self, state: ServerState, rnd: int, orders: list[Order]) -> list[Order]:
        """Return evaluation orders that ask for the finish steps, if `rnd` is the last round."""
        if not self.finish_steps or rnd != state.rounds:
            return orders
        return [replace(o, options={**o.options, FINISH: self.finish_steps}) for o in orders]

    def fold(self, state: ServerState, rnd: int, spool: Path) -> Fold:
        if self.lora.by_product:
            return self.lora.fold(state, self.share)
        if self.robust != "none":
            return Robust(self._robust_rule(), self.clip, spool)
        return Mean(self.share)

    def _robust_rule(self) -> RobustRule:
        return RULES[self.robust](self.robust_fraction)

    def check_participation(self, participation: StrategyConfig) -> None:
        if self.robust == "none":
            return
        updates = self.updates_per_adapter(smallest_cohort(participation))
        rule = self._robust_rule()
        if not (weakness := rule.weakness(updates)):
            return
        required = rule.fewest(updates)
        advice = (
            f"it needs {required} updates at strategy.robust-fraction = {self.robust_fraction:g}"
            if required
            else ""
        )
        raise ConfigError(
            f"strategy.robust = {self.robust!r} gives no protection in a round of {updates} updates per adapter, "
            f"which strategy.min-available-nodes = {participation.min_available_nodes} and strategy.fraction-train = "
            f"{participation.fraction_train:g} allow: {weakness}; {advice or 'raise strategy.robust-fraction'}"
            + (", strategy.robust = 'median' needs 3" if self.robust != "median" else "")
        )

    def updates_per_adapter(self, cohort: int) -> int:
        """Return the smallest number of updates of one adapter if a whole cohort answers."""
        return cohort

    def remarks(self, updates: Sequence[Update]) -> list[str]:
        if self.robust == "none":
            return []
        counts, rule = Counter(u.adapter for u in updates), self._robust_rule()
        return [
            f"strategy.robust = {self.robust!r} gave no protection to {adapter}: {weakness}"
            for adapter, count in sorted(counts.items())
            if (weakness := rule.weakness(count))
        ]

    def merge_train(self, state: ServerState, rnd: int, merged: Merged) -> tuple[ServerState, Metrics]:
        metrics = weighted_mean(merged.updates)
        for adapter, trees in merged.trees.items():
            if self.lora.by_product:
                state, lora_metrics = self.lora.merge(state, rnd, adapter, trees)
                metrics |= lora_metrics
            else:
                state = move(state, rnd, adapter, trees["delta"], self.server_opt())
        return state, metrics


def move(state: ServerState, rnd: int, adapter: str, delta: Tree, opt: ServerOpt) -> ServerState:
    """Return the state after one server-optimiser step on the tensors that `delta` has; others are unchanged."""
    x, slots = state.adapters[adapter], {}
    for slot in ("m", "v"):
        stored = state.memory.get(f"{adapter}.{slot}", {})
        if delta.keys() <= stored.keys():
            slots[slot] = {name: stored[name] for name in delta}
    moved, slots = opt.step({name: x[name] for name in delta}, delta, slots, rnd)
    memory = dict(state.memory)
    for slot, tree in slots.items():
        memory[f"{adapter}.{slot}"] = {**memory.get(f"{adapter}.{slot}", {}), **tree}
    return replace(state, adapters={**state.adapters, adapter: {**x, **moved}}, memory=memory)


PLUGIN = FedAvg
