"""lora.aggregation: what trains, what travels, and which keys it refuses."""

import pytest

from core.config import parse
from core.errors import ConfigError
from core.factors import MERGED, is_a, is_b, rank_of
from tests.strategies.aggregation.lora_rounds import (
    EVERYONE,
    FOUR,
    PRODUCTS,
    a_round,
    adapter,
    begin,
    strategy,
)


def test_flora_starts_anew_each_round_from_its_seed():
    chosen = strategy("flora")
    first = a_round(chosen, begin(chosen, adapter(0, 0.0)), 1)[0]
    again = a_round(chosen, begin(chosen, adapter(0, 0.0)), 1)[0]
    second = a_round(chosen, first, 2)[0]
    for n, t in first.adapters["global"].items():
        assert t.equal(again.adapters["global"][n])
        assert t.equal(second.adapters["global"][n]) is is_b(n)
        assert bool(t.any()) is is_a(n)


@pytest.mark.parametrize(
    ("method", "rnd", "trains", "up", "down"),
    [
        ("separate", 1, "AB", "AB", "AB"),
        ("ffa", 2, "B", "B", "B"),
        ("rolora", 1, "B", "B", "AB"),
        ("rolora", 2, "A", "A", "AB"),
        ("fedsa", 1, "AB", "A", "A"),
        ("fedex", 1, "AB", "AB", "AB"),
        ("flora", 2, "AB", "AB", "AB"),
        ("flexlora", 2, "AB", "AB", "AB"),
    ],
)
def test_what_trains_and_travels(method, rnd, trains, up, down):
    chosen = strategy(method)
    rule, state = chosen.local_rule(), begin(chosen, adapter(0))
    order = chosen.plan_train(state, rnd, EVERYONE)[0]
    letters = lambda names: "".join(sorted({"A" if is_a(n) else "B" for n in names}))  # noqa: E731
    names = list(state.adapters["global"])
    assert letters(n for n in names if rule.trains(n, rnd)) == trains
    assert letters(n for n in names if rule.shares(n, rnd)) == up
    assert letters(order.trees["global"]) == down
    scored = chosen.plan_evaluate(state, rnd, EVERYONE)[0]
    assert letters(scored.trees["global"]) == down


def test_the_merged_part_goes_with_every_order():
    chosen = strategy("flora", lora__client_ranks="4,2")
    state = a_round(chosen, begin(chosen, adapter(0, 0.0)), 1)[0]
    orders = [*chosen.plan_train(state, 2, EVERYONE), *chosen.plan_evaluate(state, 1, EVERYONE)]
    assert all(o.trees[MERGED] is state.memory[f"global.{MERGED}"] for o in orders)
    assert [rank_of(o.trees["global"]) for o in orders] == [4, 2, 4] * 2
    assert orders[0].trees["global"] is orders[2].trees["global"], "encoded once for all who take it"


@pytest.mark.parametrize("method", FOUR)
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("fedprox", {}),
        ("scaffold", {}),
        ("fedavgm", {}),
        ("fedadam", {}),
        ("fedavg", {"strategy.robust": "median", "strategy.min-available-nodes": 3}),
    ],
)
def test_what_fixes_tensors_goes_with_every_server_rule(method, name, keys):
    """A tensor that did not travel stays to the last bit; one that did moves, in the very round."""
    chosen = strategy(method, name, **{k.replace(".", "__"): v for k, v in keys.items()})
    state = begin(chosen, adapter(0))
    for rnd in (1, 2, 3):
        before, rule = state.adapters["global"], chosen.local_rule()
        state = a_round(chosen, state, rnd)[0]
        for n, t in state.adapters["global"].items():
            assert t.equal(before[n]) is not rule.shares(n, rnd), (n, rnd)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"strategy.name": "fedavgm"}, "server optimiser of strategy.name = 'fedavgm'"),
        ({"strategy.name": "fedadam"}, "server optimiser of strategy.name = 'fedadam'"),
        ({"strategy.name": "scaffold"}, "what clients of strategy.name = 'scaffold' send"),
        ({"strategy.robust": "krum"}, "strategy.robust = 'krum'"),
        ({"strategy.server-learning-rate": 0.5}, "strategy.server-learning-rate = 0.5"),
        ({"strategy.name": "local"}, "no effect with strategy.name = 'local', which averages no adapters"),
    ],
)
@pytest.mark.parametrize("method", PRODUCTS)
def test_products_refuse_what_would_stand_between(method, keys, message):
    with pytest.raises(ConfigError, match=f"lora.aggregation = '{method}'") as caught:
        parse({"lora.aggregation": method, **keys})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"lora.client-ranks": "4,2"},
            "lora.client-ranks = '4,2' needs lora.aggregation = flora or flexlora",
        ),
        (
            {"lora.client-ranks": "4,2", "lora.aggregation": "fedex"},
            "needs lora.aggregation = flora or flexlora",
        ),
        (
            {"lora.client-ranks": "16,2", "lora.aggregation": "flora"},
            "integers from 1 to lora.r (8)",
        ),
        ({"lora.client-ranks": "8,x", "lora.aggregation": "flora"}, "got '8,x'"),
        ({"lora.client-ranks": "0", "lora.aggregation": "flexlora"}, "got '0'"),
        (
            {"lora.client-ranks": "4", "lora.aggregation": "flora", "strategy.name": "fedprox"},
            "lora.client-ranks with the local steps of strategy.name = 'fedprox'",
        ),
        (
            {"lora.residual-rank": 4},
            "lora.residual-rank = 4 has no effect with lora.aggregation = 'separate'",
        ),
        ({"lora.residual-rank": 4, "lora.aggregation": "flexlora"}, "it is for fedex and flora"),
        ({"lora.aggregation": "ffa", "strategy.name": "centralized"}, "which averages no adapters"),
        ({"lora.aggregation": "flora", "train.optimizer-state": "keep"}, "use 'reset'"),
        ({"lora.aggregation": "rolora", "train.engine": "trl"}, "which train.engine = 'trl' cannot do"),
    ],
)
def test_a_key_that_cannot_act_is_refused(keys, message):
    with pytest.raises(ConfigError) as caught:
        parse(keys)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
