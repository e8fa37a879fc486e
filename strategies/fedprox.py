"""FedProx: FedAvg with a proximal term (mu/2) ||w - x||^2 in the client's loss. Li et al. 2020, Eq. 2
(arXiv:1812.06127).

The variants agree: the server's step is FedAvg's, the term's gradient is mu (w - x) before clipping.
Deviations: a fixed number of AdamW steps where the paper has an inexact solver of a given accuracy.
"""

from dataclasses import dataclass

from core.errors import ConfigError
from strategies.clients.proximal import fedprox_rule
from strategies.clients.rule import ClientRule
from strategies.fedavg import FedAvg


@dataclass
class FedProx(FedAvg):
    proximal_mu: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.proximal_mu < 0:
            raise ConfigError(f"strategy.proximal-mu must not be negative, got {self.proximal_mu!r}")

    def client_rule(self, rule: ClientRule) -> ClientRule:
        return fedprox_rule(self.proximal_mu, super().client_rule(rule))


PLUGIN = FedProx
