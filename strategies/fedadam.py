"""FedAdam: v = beta_2 v + (1 - beta_2) D^2, m = beta_1 m + (1 - beta_1) D, x' = x + eta m / (sqrt(v) + tau).
Reddi et al. 2021, Algorithm 2 (arXiv:2003.00295); m_0 = 0, v_0 = tau^2, no bias correction.

openfedllm: m = D in round 1, and v takes m^2 where the paper takes D^2. flower: v_0 = 0, D weighted by examples,
and eta sqrt(1 - beta_2^(r+1)) / (1 - beta_1^(r+1)) in round r.
Deviations: the paper tunes eta and tau for each task; here tau = 0.001 and eta = 0.001 (openfedllm's own) or 0.002
(docs/aggregators.md). flwr's own default is eta = 0.1.
"""

from dataclasses import dataclass
from typing import ClassVar

from strategies.aggregation.server_opt import ServerOpt, adam, adaptive, flower_adam_correction
from strategies.fedyogi import FedYogi


@dataclass
class FedAdam(FedYogi):
    own_learning_rate: ClassVar[dict[str, float]] = {"paper": 2e-3, "openfedllm": 1e-3, "flower": 2e-3}

    def server_opt(self) -> ServerOpt:
        correction = flower_adam_correction(self.beta_1, self.beta_2) if self.variant == "flower" else None
        return adaptive(
            self.variant,
            adam(self.beta_2),
            eta=self.eta,
            tau=self.tau,
            beta_1=self.beta_1,
            correction=correction,
        )


PLUGIN = FedAdam
