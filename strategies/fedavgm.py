"""FedAvgM: server momentum. m = beta m + D, x' = x + eta m. Hsu et al. 2019, section 4 (arXiv:1909.06335).

openfedllm: m = D in round 1, then m = beta m + (1 - beta) D: an average, whose long-run gain is 1 where the
paper's is 1 / (1 - beta). flower: the paper's formula.
Deviations: the paper's momentum may be Nesterov's; plain heavy ball here, as in flwr. eta = 0.1 (paper, flower), so
that the gain in the long run is 1 at beta = 0.9; flwr's own defaults are eta = 1 and beta = 0.
"""

from dataclasses import dataclass
from typing import ClassVar

from core.errors import ConfigError
from strategies.aggregation.server_opt import ServerOpt, momentum
from strategies.fedavg import FedAvg


@dataclass
class FedAvgM(FedAvg):
    server_momentum: float = 0.9  # beta

    own_learning_rate: ClassVar[dict[str, float]] = {"paper": 0.1, "openfedllm": 1.0, "flower": 0.1}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.server_momentum < 1:
            raise ConfigError(f"strategy.server-momentum must be in [0, 1), got {self.server_momentum!r}")

    def server_opt(self) -> ServerOpt:
        return momentum(self.variant, self.eta, self.server_momentum)


PLUGIN = FedAvgM
