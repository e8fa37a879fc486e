"""Ditto: in addition to FedAvg, every client trains a personal model, min_v F_k(v) + (lambda/2) ||v - w||^2.

Li et al. 2021, section 3 and Algorithm 1 (arXiv:2012.04221): the shared w is FedAvg's; v_k takes as many steps from
its last value, each with the gradient of F_k plus lambda (v - w^t), w^t being what the server sent in this round. The
client is scored with v_k. A round costs a client twice the steps.
Deviations: v_k begins as the w^t of the client's first round, not as w^0; AdamW and clipping where the paper has SGD.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from core.errors import ConfigError
from core.local_steps import Correction
from core.sections import LoraConfig
from core.types import Order
from strategies.clients.proximal import pull_to
from strategies.clients.rule import ClientRule
from strategies.fedavg import FedAvg


@dataclass
class Ditto(FedAvg):
    personal_lambda: float = 0.1

    allows_private_parts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.personal_lambda < 0:
            raise ConfigError(f"strategy.personal-lambda must not be negative, got {self.personal_lambda!r}")

    def with_lora(self, lora: LoraConfig) -> Self:
        built = super().with_lora(lora)
        if built.lora.by_product:
            raise ConfigError(
                f"lora.aggregation = {lora.aggregation!r} changes the merged factors in every round, which a client's "
                "personal adapter cannot follow; with strategy.name = 'ditto' use separate | ffa | rolora | fedsa"
            )
        return built

    def client_rule(self, rule: ClientRule) -> ClientRule:
        def pull(order: Order) -> Correction:
            return pull_to(order.trees[order.adapter], self.personal_lambda)

        return replace(super().client_rule(rule), pull=pull)


PLUGIN = Ditto
