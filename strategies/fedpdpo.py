"""FedPDPO: FedAvg over the LoRA adapter alone; what task.name = "pdpo" adds to a client stays there and is recalled.

Source: the paper's abstract and captions; the rest is a reconstruction (docs/personalisation.md). The server adds
nothing to FedAvg: no rule lets a private tensor leave a client (strategies/clients/rule.py). New clients: one whose
first round is not the run's first takes personal-steps on its private parts alone, at the adapter it was given, and
then trains like the others.
Deviations: none that can be known.
"""

from dataclasses import dataclass, replace

from core.errors import ConfigError
from strategies.clients.rule import ClientRule
from strategies.fedavg import FedAvg


@dataclass
class FedPDPO(FedAvg):
    personal_steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.personal_steps < 0:
            raise ConfigError(f"strategy.personal-steps must not be negative, got {self.personal_steps!r}")

    def client_rule(self) -> ClientRule:
        return replace(super().client_rule(), newcomer_steps=self.personal_steps)


PLUGIN = FedPDPO
