"""FedAdagrad: v = v + D^2, x' = x + eta D / (sqrt(v) + tau), v_0 = tau^2. Reddi et al. 2021, Algorithm 2
(arXiv:2003.00295).

D is the uniform mean in paper and openfedllm, weighted by examples in flower, where v_0 = 0.
Deviations: beta_1 = 0, as in the paper's experiments and in both other variants; the paper tunes eta and tau
for each task, the defaults here are eta = 0.01 (paper), 0.001 (openfedllm), 0.1 (flower) and tau = 0.001.
"""

from dataclasses import dataclass
from typing import ClassVar

from core.errors import ConfigError
from strategies.fedavg import FedAvg
from strategies.kit.server_opt import ServerOpt, adagrad, adaptive


@dataclass
class FedAdagrad(FedAvg):
    tau: float = 1e-3  # adaptivity: where sqrt(v) << tau the step is eta D / tau

    own_weighting: ClassVar[dict[str, str]] = {
        "paper": "uniform",
        "openfedllm": "uniform",
        "flower": "examples",
    }
    own_learning_rate: ClassVar[dict[str, float]] = {"paper": 1e-2, "openfedllm": 1e-3, "flower": 1e-1}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tau > 0:
            raise ConfigError(f"strategy.tau must be above 0, got {self.tau!r}")

    def server_opt(self) -> ServerOpt:
        return adaptive(self.variant, adagrad, eta=self.eta, tau=self.tau, beta_1=0.0)


PLUGIN = FedAdagrad
