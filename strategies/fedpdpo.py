"""FedPDPO: FedAvg over the LoRA adapter; the private parts of task.name = "pdpo" stay at their client.

Source: the paper's abstract and captions; the rest is a reconstruction (docs/personalisation.md). The server's
step is FedAvg's: no rule lets a private tensor leave its client (strategies/clients/rule.py). A client that joins after
the first round takes personal-steps on its private parts alone, with the adapter fixed, and then trains like the
others.
Deviations: unknown, since the full text was not available.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from core.errors import ConfigError
from core.sections import Config
from strategies.clients.rule import ClientRule
from strategies.fedavg import FedAvg


@dataclass
class FedPDPO(FedAvg):
    personal_steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.personal_steps < 0:
            raise ConfigError(f"strategy.personal-steps must not be negative, got {self.personal_steps!r}")

    def conflicts(self, config: Config) -> Iterator[str]:
        if not config.task_choice.build().has_private_parts:
            yield (
                f"strategy.name = 'fedpdpo' is for task.name = 'pdpo': with {config.task_choice.name!r} a client has "
                "no private parts"
            )

    def client_rule(self, rule: ClientRule) -> ClientRule:
        return replace(super().client_rule(rule), newcomer_steps=self.personal_steps)


PLUGIN = FedPDPO
