"""FedPDPO: FedAvg over the LoRA adapter; the private parts of task.name = "pdpo" stay at their client.

Source: the paper's abstract and captions; the rest is a reconstruction (docs/personalisation.md). The server's
step is FedAvg's: no rule lets a private tensor leave its client (strategies/clients/rule.py). A client that joins after
the first round takes personal-steps on its private parts alone, with the adapter fixed, and then trains like the
others.
Deviations: unknown, since the full text was not available.
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
