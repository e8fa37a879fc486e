import torch

from core.types import Client, Update
from strategies.centralized import Centralized
from strategies.fedavg import FedAvg
from strategies.local import Local
from tests.strategies.simulated_rounds import merge

X = {"w": torch.tensor([1.0, 2.0])}


def update(client: int, examples: int, *delta: float) -> Update:
    return Update(client, examples, "global", {"delta": {"w": torch.tensor(delta)}}, {"loss": float(client)})


def test_fedavg_by_hand():
    """x + (1*(4, 0) + 3*(0, -4))/4 = (1 + 1, 2 - 3); loss (1*0 + 3*1)/4."""
    strategy = FedAvg()
    state, metrics = merge(
        strategy, strategy.init({"global": X}, 0), 1, [update(0, 1, 4.0, 0.0), update(1, 3, 0.0, -4.0)]
    )
    assert state.adapters["global"]["w"].tolist() == [2.0, -1.0]
    assert metrics == {"loss": 0.75, "examples": 4.0, "norm/delta": 4.0}


def test_local_shares_nothing_and_moves_nothing():
    strategy = Local()
    assert not strategy.local_rule().shares("anything", 1)
    state = strategy.init({"global": X}, 0)
    assert merge(strategy, state, 1, [Update(0, 3, "global", {"delta": {}}, {"loss": 1.0})])[0] is state


def test_centralized_asks_one_client_for_everyones_steps():
    strategy = Centralized()
    orders = strategy.plan_train(strategy.init({"global": X}, 0), 1, [Client(2, 5), Client(4, 9)])
    assert [(o.client, dict(o.options)) for o in orders] == [(2, {"rows": "all", "steps-factor": 2})]
