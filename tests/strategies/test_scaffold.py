"""SCAFFOLD's server half with the client's arithmetic of the vectors, and N against the sample."""

from dataclasses import replace

import pytest
import torch

from core.errors import ConfigError
from core.plugins import build
from core.types import Client, ServerState, Update
from tests.strategies.simulated_rounds import close, merge, tree64, vector


def controlled(strategy, x, clients: int) -> ServerState:
    state = strategy.init({"global": x}, 0)
    return replace(state, clients=clients)


def test_three_rounds_of_the_reference():
    """The clients' local models and control changes are the vector's; the server makes x and c of them."""
    document = vector("scaffold_3rounds_sgd")
    given = document["inputs"]
    strategy = build("strategies", "scaffold", {"variant": "openfedllm"})
    state = controlled(strategy, tree64(given["global_round0"]), given["num_clients"])
    known = {c: {n: torch.zeros_like(t) for n, t in state.memory["control"].items()} for c in range(4)}
    for rnd, (sampled, want) in enumerate(
        zip(given["sampled"], document["outputs"]["rounds"], strict=True), 1
    ):
        updates, x = [], state.adapters["global"]
        for client in sampled:
            outcome = want["clients"][str(client)]
            local, new = tree64(outcome["local_model"]), tree64(outcome["c_i_new"])
            trees = {
                "delta": {n: local[n] - x[n] for n in x},
                "control": {n: new[n] - known[client][n] for n in x},
            }
            known[client] = new
            updates.append(Update(client, given["n"][client], "global", trees, {}))
        state, _ = merge(strategy, state, rnd, updates)
        close(state.adapters["global"], tree64(want["global"]))
        close(state.memory["control"], tree64(want["c"]))


def test_n_is_the_federation_not_the_sample():
    """Two of eight clients change their control by 4 and 0: c = (4 + 0)/8; x moves by the uniform mean (1 + 3)/2."""
    strategy = build("strategies", "scaffold", {})
    state = controlled(strategy, {"w": torch.zeros(1)}, 8)
    updates = [
        Update(c, n, "global", {"delta": {"w": torch.tensor([d])}, "control": {"w": torch.tensor([k])}}, {})
        for c, n, d, k in ((0, 1, 1.0, 4.0), (1, 9, 3.0, 0.0))
    ]
    state, _ = merge(strategy, state, 1, updates)
    assert state.memory["control"]["w"].item() == 0.5
    assert state.adapters["global"]["w"].item() == 2.0


def test_the_control_goes_down_with_the_order():
    strategy = build("strategies", "scaffold", {})
    (order,) = strategy.plan_train(controlled(strategy, {"w": torch.ones(1)}, 2), 1, [Client(0, 5)])
    assert order.trees["control"]["w"].tolist() == [0.0]
    assert strategy.local_rule().sends == ("delta", "control")
    assert strategy.local_rule().wants_gradients
    assert not build("strategies", "scaffold", {"control-variate": "steps"}).local_rule().wants_gradients


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "flower"}, "scaffold has paper | openfedllm"),
        ({"control-variate": "both"}, "gradients | steps, got 'both'"),
        ({"robust": "median"}, "strategy.name = 'scaffold'"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError) as caught:
        build("strategies", "scaffold", options)
    assert message in str(caught.value)
