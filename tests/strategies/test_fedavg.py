import json
from pathlib import Path

import pytest
import torch

from core.types import Client, Update
from strategies.centralized import Centralized
from strategies.fedavg import FedAvg
from strategies.local import Local

VECTORS = Path(__file__).parents[2].parent / "shared" / "spec" / "vectors" / "openfedllm.json"
X = {"w": torch.tensor([1.0, 2.0])}


def update(client: int, examples: int, *delta: float) -> Update:
    return Update(client, examples, "global", {"delta": {"w": torch.tensor(delta)}}, {"loss": float(client)})


def test_fedavg_by_hand():
    """x + (1*(4, 0) + 3*(0, -4))/4 = (1 + 1, 2 - 3); loss (1*0 + 3*1)/4."""
    strategy = FedAvg()
    state, metrics = strategy.merge_train(
        strategy.init({"global": X}, 0), 1, [update(0, 1, 4.0, 0.0), update(1, 3, 0.0, -4.0)]
    )
    assert state.adapters["global"]["w"].tolist() == [2.0, -1.0]
    assert metrics == {"loss": 0.75, "examples": 4.0}


def test_uniform_weighting_ignores_the_counts():
    strategy = FedAvg(weighting="uniform")
    state, _ = strategy.merge_train(
        strategy.init({"global": X}, 0), 1, [update(0, 1, 4.0, 0.0), update(1, 3, 0.0, -4.0)]
    )
    assert state.adapters["global"]["w"].tolist() == [3.0, 0.0]


@pytest.mark.skipif(not VECTORS.exists(), reason="the reference vectors are not here")
def test_fedavg_is_openfedllms():
    vector = json.loads(VECTORS.read_text())["agg_fedavg_default"]
    given, strategy = vector["inputs"], FedAvg()
    to_tree = lambda named: {n: torch.tensor(v, dtype=torch.float64) for n, v in named.items()}  # noqa: E731
    state = strategy.init({"global": to_tree(given["global_round0"])}, 0)
    rounds = zip(
        given["sampled_clients_per_round"], given["local_delta"], vector["outputs"]["per_round"], strict=True
    )
    for rnd, (clients, deltas, want) in enumerate(rounds, start=1):
        sizes = given["num_samples_per_client"]
        updates = [Update(c, sizes[c], "global", {"delta": to_tree(deltas[str(c)])}, {}) for c in clients]
        state, _ = strategy.merge_train(state, rnd, updates)
        for name, values in to_tree(want["global"]).items():
            torch.testing.assert_close(state.adapters["global"][name], values, rtol=0, atol=1e-9)


def test_local_shares_nothing_and_moves_nothing():
    strategy = Local()
    assert not strategy.client_rule().shares("anything", 1)
    state = strategy.init({"global": X}, 0)
    assert strategy.merge_train(state, 1, [Update(0, 3, "global", {"delta": {}}, {"loss": 1.0})])[0] is state


def test_centralized_asks_one_client_for_everyones_steps():
    strategy = Centralized()
    orders = strategy.plan_train(strategy.init({"global": X}, 0), 1, [Client(2, 5), Client(4, 9)])
    assert [(o.client, dict(o.knobs)) for o in orders] == [(2, {"rows": "all", "steps-factor": 2})]
