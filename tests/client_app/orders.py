"""Orders for a site on the real toy model."""

from dataclasses import dataclass

from client_app.site import Site
from core.types import Order
from strategies.base import Strategy
from strategies.clients.control_variates import scaffold_rule
from strategies.clients.rule import ClientRule
from strategies.fedavg import FedAvg
from tasks.model.adapter import initial_adapter
from tests.orders import with_fields

SMALL = {"data.rows-per-client": 12, "data.eval-rows-per-client": 6, "train.local-steps": 2}


def order(site: Site, tree=None, *, rnd: int = 1, recall: int = 0, **fields) -> Order:
    base = site.base()
    tree = tree or initial_adapter(base, 42)
    common = {"run": "r", "base": base.fingerprint, "round": rnd}
    return with_fields(Order(site.node.client, {"global": tree}, recall=recall), **common, **fields)


@dataclass
class Corrected(FedAvg):
    def client_rule(self, rule: ClientRule) -> ClientRule:
        return scaffold_rule(
            "paper", "gradients", ClientRule(trains=lambda name, rnd: ".lora_A." not in name)
        )


class Bent(Site):
    """A site whose strategy changes the local steps, and lets B alone train."""

    @property
    def strategy(self) -> Strategy:
        return Corrected()
