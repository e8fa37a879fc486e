"""FedYogi: v = v - (1 - beta_2) D^2 sign(v - D^2), m = beta_1 m + (1 - beta_1) D, x' = x + eta m / (sqrt(v) + tau).
Reddi et al. 2021, Algorithm 2 (arXiv:2003.00295); m_0 = 0, v_0 = tau^2.

openfedllm: m = D in round 1, and v takes m^2 where the paper takes D^2. flower: v_0 = 0, D weighted by examples.
Deviations: the paper tunes eta and tau for each task; here tau = 0.001 and eta = 0.001 (openfedllm's own) or 0.002
(docs/aggregators.md). flwr's own default is eta = 0.01.
"""

from dataclasses import dataclass
from typing import ClassVar

from core.errors import ConfigError
from strategies.aggregation.server_opt import ServerOpt, adaptive, yogi
from strategies.fedadagrad import FedAdagrad


@dataclass
class FedYogi(FedAdagrad):
    beta_1: float = 0.9
    beta_2: float = 0.99

    own_learning_rate: ClassVar[dict[str, float]] = {"paper": 2e-3, "openfedllm": 1e-3, "flower": 2e-3}

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, value in (("beta-1", self.beta_1), ("beta-2", self.beta_2)):
            if not 0 <= value < 1:
                raise ConfigError(f"strategy.{key} must be in [0, 1), got {value!r}")

    def server_opt(self) -> ServerOpt:
        return adaptive(self.variant, yogi(self.beta_2), eta=self.eta, tau=self.tau, beta_1=self.beta_1)


PLUGIN = FedYogi
