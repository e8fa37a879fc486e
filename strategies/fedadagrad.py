"""FedAdagrad: v = v + D^2, x' = x + eta D / (sqrt(v) + tau), v_0 = tau^2. Reddi et al. 2021, Algorithm 2
(arXiv:2003.00295).

D is the uniform mean in paper and openfedllm, weighted by examples in flower, where v_0 = 0.
Deviations: beta_1 = 0, as in the paper's experiments and in both other variants; the paper tunes eta and tau
for each task, the defaults here are tau = 0.001 and eta = 0.001 (openfedllm's own) or 0.002, which is 2 tau: a small
step then equals FedAvg's (docs/aggregators.md). flwr's own default is eta = 0.1.
"""

from dataclasses import dataclass
from typing import ClassVar

from core.errors import ConfigError
from strategies.aggregation.server_opt import ServerOpt, adagrad, adaptive
from strategies.fedavg import FedAvg


@dataclass
class FedAdagrad(FedAvg):
    tau: float = 1e-3  # adaptivity: where sqrt(v) << tau the step is eta D / tau

    own_weighting: ClassVar[dict[str, str]] = {
        "paper": "uniform",
        "openfedllm": "uniform",
        "flower": "examples",
    }
    own_learning_rate: ClassVar[dict[str, float]] = {"paper": 2e-3, "openfedllm": 1e-3, "flower": 2e-3}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tau > 0:
            raise ConfigError(f"strategy.tau must be above 0, got {self.tau!r}")

    def server_opt(self) -> ServerOpt:
        return adaptive(self.variant, adagrad, eta=self.eta, tau=self.tau, beta_1=0.0)


PLUGIN = FedAdagrad
