import math

import pytest
import torch

from core.errors import ConfigError
from core.types import Client, ServerState, Update
from strategies.fedbis import FedBis
from tests.strategies.simulated_rounds import merge

HELD = {0: 40, 1: 30, 2: 20, 3: 10}
D = [0.4, -1.0, 2.0, 3.0]


def state(**fields) -> ServerState:
    x = {"w": torch.zeros(1, dtype=torch.float64)}
    return ServerState(0, 0, {"global": x}, clients=4, examples=HELD, **fields)


def updates(*clients: int) -> list[Update]:
    deltas = {c: {"delta": {"w": torch.tensor([D[c]], dtype=torch.float64)}} for c in clients}
    return [Update(c, HELD[c], "global", deltas[c], {}) for c in clients]


def test_uniform_is_the_plain_mean():
    after, _ = merge(FedBis(), state(), 1, updates(0, 1, 3))
    assert after.adapters["global"]["w"].item() == pytest.approx((0.4 - 1.0 + 3.0) / 3, abs=1e-12)


def test_equation_4_with_weights_by_examples():
    """(M/A) sum p_m d_m = (4/2)(.4*.4 + .3*(-1)); its expectation over all pairs is the weighted mean of all."""
    strategy = FedBis(weighting="examples")
    after, _ = merge(strategy, state(), 1, updates(0, 1))
    assert after.adapters["global"]["w"].item() == pytest.approx(2 * (0.4 * 0.4 - 0.3), abs=1e-12)
    pairs = [(a, b) for a in range(4) for b in range(a)]
    steps = [merge(strategy, state(), 1, updates(*p))[0].adapters["global"]["w"].item() for p in pairs]
    assert sum(steps) / len(pairs) == pytest.approx(0.16 - 0.3 + 0.4 + 0.3, abs=1e-12)


def test_momentum_and_adam_by_hand():
    """D = 1 twice: momentum 0.5 goes 1, then 1.5 more. Adam: m = .1, v = .99e-6 + .01, at a rate of .01."""
    x, strategy = state(), FedBis(server_optimizer="momentum", server_momentum=0.5)
    one = lambda: [Update(0, 1, "global", {"delta": {"w": torch.ones(1, dtype=torch.float64)}}, {})]  # noqa: E731
    for rnd in (1, 2):
        x, _ = merge(strategy, x, rnd, one())
    assert x.adapters["global"]["w"].item() == 2.5
    after, _ = merge(FedBis(server_optimizer="adam"), state(), 1, one())
    want = 0.01 * 0.1 / (math.sqrt(0.99e-6 + 0.01) + 1e-3)
    assert after.adapters["global"]["w"].item() == pytest.approx(want, rel=1e-12)


def test_the_servers_rate_falls_in_the_second_half():
    """Eight rounds: 1 up to the fifth, then (1 + cos(pi/4 j))/2."""
    strategy, known = FedBis(server_lr_schedule="cosine"), state(rounds=8)
    rates = [strategy.rate_factor(known, rnd) for rnd in range(1, 9)]
    assert rates == pytest.approx([1, 1, 1, 1, 1, 0.8535534, 0.5, 0.1464466])
    after, _ = merge(strategy, known, 7, updates(2))
    assert after.adapters["global"]["w"].item() == pytest.approx(1.0)


def test_the_average_is_what_is_scored_and_left_and_not_what_is_trained():
    """Steps of 1: x = 1, 2, 3; the average 1, 1.5, 2.25."""
    strategy, x = FedBis(ema=0.5), state()
    for rnd in (1, 2, 3):
        x, _ = merge(strategy, x, rnd, [Update(0, 1, "global", {"delta": {"w": torch.ones(1).double()}}, {})])
    everyone = [Client(0, 40)]
    assert strategy.plan_train(x, 4, everyone)[0].trees["global"]["w"].item() == 3.0
    assert strategy.plan_evaluate(x, 3, everyone)[0].trees["global"]["w"].item() == 2.25
    assert strategy.final(x)["global"]["w"].item() == 2.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "flower"}, "strategy.variant = 'flower': fedbis has paper"),
        ({"server_optimizer": "sgd"}, "strategy.server-optimizer must be one of plain | momentum | adam"),
        ({"ema": 1.0}, r"strategy.ema must be in \[0, 1\), got 1.0"),
        ({"tau": 0.1}, "strategy.tau = 0.1 has no effect with strategy.server-optimizer = 'plain'"),
        ({"weighting": "tokens"}, "use uniform | examples"),
    ],
)
def test_bad_values_are_refused(options, message):
    with pytest.raises(ConfigError, match=message.replace("|", r"\|")):
        FedBis(**options)
