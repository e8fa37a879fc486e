"""FedBis: one selector for all, x' = x + eta (M/A) sum_m p_m (x_m - x). Wu et al. 2024, Eq. (4) (arXiv:2407.03038).

M clients share it, A of them answered in this round; p is uniform, so that the step is the plain mean of the deltas.
`strategy.server-optimizer` applies momentum (Hsu 2019) or Adam (Reddi 2021) to the mean.
Deviations: Eq. (4) sums parameters, (M/A) sum p_m x_m; if p is not uniform its weights do not sum to 1, which rescales
the parameters. Summing deltas has the same expectation without the rescaling. A counts the clients that answered, not
those that were asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import cos, pi
from typing import ClassVar

from core.errors import ConfigError
from core.tree import Tree, scale, zip_map
from core.types import Client, Metrics, Order, ServerState, Update
from strategies.aggregation.fold import Merged
from strategies.aggregation.server_opt import ServerOpt, adam, adaptive, momentum, plain
from strategies.fedavg import FedAvg, move
from strategies.rounds.metrics import weighted_mean
from strategies.rounds.weighting import weight

DEFAULT_RATES = {"plain": 1.0, "momentum": 1.0, "adam": 0.01}
OPTIMIZERS_OF = {"server_momentum": ("momentum",), "tau": ("adam",), "beta_1": ("adam",), "beta_2": ("adam",)}


@dataclass
class FedBis(FedAvg):
    server_optimizer: str = "plain"  # plain | momentum | adam, for each selector separately
    server_momentum: float = 0.9  # momentum: beta
    tau: float = 1e-3  # adam: adaptivity
    beta_1: float = 0.9  # adam
    beta_2: float = 0.99  # adam
    server_lr_schedule: str = "constant"  # constant | cosine: constant in the first half, then down to 0
    ema: float = (
        0.0  # decay of a moving average of the selector, which is scored and exported in its place; 0: off
    )

    allows_private_parts: ClassVar[bool] = False
    own_weighting: ClassVar[dict[str, str]] = {"paper": "uniform"}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("server_optimizer", tuple(DEFAULT_RATES))
        self._check_choice("server_lr_schedule", ("constant", "cosine"))
        for name in ("server_momentum", "beta_1", "beta_2", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{_key(name)} must be in [0, 1), got {getattr(self, name)!r}")
        if not self.tau > 0:
            raise ConfigError(f"strategy.tau must be above 0, got {self.tau!r}")
        for name, optimizers in OPTIMIZERS_OF.items():
            value = getattr(self, name)
            if self.server_optimizer not in optimizers and value != getattr(type(self), name):  # the default
                raise ConfigError(
                    f"{_key(name)} = {value!r} has no effect with strategy.server-optimizer = "
                    f"{self.server_optimizer!r}"
                )
        if self.weighting == "tokens":
            raise ConfigError(
                "strategy.weighting = 'tokens': p_m is a client's share of the federation, which the server "
                "knows in clients and in examples only; use uniform | examples"
            )

    def _check_choice(self, name: str, values: tuple[str, ...]) -> None:
        if getattr(self, name) not in values:
            raise ConfigError(
                f"{_key(name)} must be one of {' | '.join(values)}, got {getattr(self, name)!r}"
            )

    # --- the server's step ---------------------------------------------------------

    @property
    def eta(self) -> float:
        return self.server_learning_rate or DEFAULT_RATES[self.server_optimizer]

    @property
    def warmup_end(self) -> int:
        """The last round of the warm-up, before which the server's rate does not fall; 0: no warm-up."""
        return 0

    def server_opt(self, factor: float = 1.0) -> ServerOpt:
        """Return the server optimiser; `factor` multiplies its learning rate."""
        rate = self.eta * factor
        if self.server_optimizer == "momentum":
            return momentum("paper", rate, self.server_momentum)
        if self.server_optimizer == "adam":
            return adaptive("paper", adam(self.beta_2), eta=rate, tau=self.tau, beta_1=self.beta_1)
        return plain(rate)

    def rate_factor(self, state: ServerState, rnd: int) -> float:
        """Return the schedule's factor on the rate: 1 in the first half, then (1 + cos(pi h)) / 2, h from 0 to 1."""
        if self.server_lr_schedule == "constant" or rnd <= self.warmup_end:
            return 1.0
        progress = (rnd - 1 - self.warmup_end) / (state.rounds - self.warmup_end)
        return (1 + cos(pi * max(0.0, 2 * progress - 1))) / 2

    def gain(self, state: ServerState, rnd: int, adapter: str, updates: Sequence[Update]) -> float:
        """Return the factor on the mean of an adapter's deltas: (M/A) sum p_m."""
        return len(state.examples) * self.weight_sum(state, adapter, updates) / len(updates)

    def weight_sum(self, state: ServerState, adapter: str, updates: Sequence[Update]) -> float:
        """Return sum p_m over the clients that trained the adapter; p sums to 1 over the federation."""
        examples, weighting = state.examples, self.effective_weighting
        total = len(examples) if weighting == "uniform" else sum(examples.values())
        return sum(weight(u, weighting) for u in updates if u.adapter == adapter) / total

    def merge_train(self, state: ServerState, rnd: int, merged: Merged) -> tuple[ServerState, Metrics]:
        opt = self.server_opt(self.rate_factor(state, rnd))
        for adapter, trees in merged.trees.items():
            delta = scale(trees["delta"], self.gain(state, rnd, adapter, merged.updates))
            state = self._smoothed(move(state, rnd, adapter, delta, opt), adapter)
        return state, weighted_mean(merged.updates)

    # --- the moving average ----------------------------------------------------------

    def _smoothed(self, state: ServerState, adapter: str) -> ServerState:
        """Return the state with an updated moving average, which begins at the first step's result."""
        if not self.ema:
            return state
        x, name = state.adapters[adapter], f"{adapter}.ema"
        old = state.memory.get(name, x)
        new = zip_map(lambda a, b: self.ema * a + (1 - self.ema) * b, old, x)
        return replace(state, memory={**state.memory, name: new})

    def averaged(self, state: ServerState) -> ServerState:
        """Return the state with the adapters that are scored and exported: the moving averages if `ema` is on."""
        return replace(
            state, adapters={a: state.memory.get(f"{a}.ema", x) for a, x in state.adapters.items()}
        )

    def plan_evaluate(self, state: ServerState, rnd: int, everyone: list[Client]) -> list[Order]:
        return super().plan_evaluate(self.averaged(state), rnd, everyone)

    def final(self, state: ServerState) -> dict[str, Tree]:
        return super().final(self.averaged(state))


def _key(name: str) -> str:
    return f"strategy.{name.replace('_', '-')}"


PLUGIN = FedBis
