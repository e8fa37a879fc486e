"""FedAvg: x' = x + sum_k w_k (y_k - x). McMahan et al. 2017, Algorithm 1 (arXiv:1602.05629).

Deviations: LoRA's A and B are averaged as separate tensors, so the mean of the products B A is not the
product of the means; local steps are AdamW where the paper has SGD.
"""

from dataclasses import dataclass, replace

from core.errors import ConfigError
from core.tree import add, mean
from core.types import Metrics, ServerState, Update
from strategies.base import Strategy
from strategies.kit.metrics import weighted_mean

WEIGHTINGS = ("examples", "uniform")


@dataclass
class FedAvg(Strategy):
    weighting: str = "examples"  # w_k: n_k / sum n (examples) or 1 / K (uniform)

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise ConfigError(
                f"strategy.weighting must be one of {' | '.join(WEIGHTINGS)}, got {self.weighting!r}"
            )

    def merge_train(self, state: ServerState, rnd: int, updates: list[Update]) -> tuple[ServerState, Metrics]:
        weights = [float(u.examples) if self.weighting == "examples" else 1.0 for u in updates]
        delta = mean([u.trees["delta"] for u in updates], weights)
        adapters = {**state.adapters, "global": add(state.adapters["global"], delta)}
        return replace(state, adapters=adapters), weighted_mean(updates)


PLUGIN = FedAvg
