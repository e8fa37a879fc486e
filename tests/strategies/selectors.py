"""Three selectors of twelve clients, without a model."""

from dataclasses import replace

import torch

from core.types import Client, ServerState
from strategies.fedbiscuit import FedBiscuit

NAMES = ["c0", "c1", "c2"]
LAYOUT = {"l.lora_A.weight": torch.zeros(2, 3), "l.lora_B.weight": torch.zeros(3, 2)}
EVERYONE = [Client(c, 10 + c) for c in range(12)]
GROUPED = 7  # the first round after the warm-up


def begin(strategy: FedBiscuit, clients: list[Client] = EVERYONE, **fields) -> ServerState:
    state = strategy.init({"global": LAYOUT}, seed=3)
    examples = {c.id: c.examples for c in clients}
    return replace(state, **{"clients": len(clients), "examples": examples, "rounds": 12, **fields})
