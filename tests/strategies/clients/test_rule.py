"""Which tensors train, travel, stay and come back."""

import pytest
import torch

from core.types import Order
from strategies.clients.rule import ClientRule, Outcome


def tree(value: float, *names: str) -> dict:
    return {n: torch.full((2,), value) for n in names or ("a", "b", "c")}


def order(rnd: int = 1) -> Order:
    return Order(0, {"global": tree(1.0)}, round=rnd)


def values(tree) -> dict[str, float]:
    return {n: t[0].item() for n, t in tree.items()}


def finish(rule: ClientRule, memory=None, rnd: int = 1):
    memory = memory or {}
    before = rule.start(order(rnd), memory)
    after = {n: t + i for i, (n, t) in enumerate(before.items(), start=1)}
    return rule.finish(order(rnd), memory, Outcome(before, after, 3, 0.1))


def test_by_default_everything_travels_and_nothing_stays():
    sent, kept = finish(ClientRule())
    assert values(sent["delta"]) == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert kept == {}


def test_what_trains_and_is_not_shared_is_the_clients_own():
    """b trains alone; c neither trains nor travels, so nobody keeps it."""
    rule = ClientRule(shares=lambda name, rnd: name == "a", trains=lambda name, rnd: name != "c")
    sent, kept = finish(rule)
    assert values(sent["delta"]) == {"a": 1.0}
    assert values(kept["own"]) == {"b": 3.0}
    assert values(rule.start(order(2), kept)) == {"a": 1.0, "b": 3.0, "c": 1.0}


def test_the_round_decides():
    """b travels in round 1 and a in round 2: a's change is then counted from the server's value, not the client's."""
    rule = ClientRule(shares=lambda name, rnd: name == "ab"[rnd % 2])
    _, kept = finish(rule, rnd=1)
    assert values(kept["own"]) == {"a": 2.0, "c": 4.0}
    assert values(rule.start(order(2), kept)) == {"a": 1.0, "b": 1.0, "c": 4.0}
    sent, _ = finish(rule, kept, rnd=2)
    assert values(sent["delta"]) == {"a": 1.0}


def test_an_own_tensor_that_rests_for_a_round_is_kept():
    rule = ClientRule(shares=lambda name, rnd: name != "a", trains=lambda name, rnd: name != "a" or rnd == 1)
    _, kept = finish(rule, rnd=1)
    _, then = finish(rule, kept, rnd=2)
    assert values(then["own"]) == {"a": 2.0}


def test_more_trees_travel_and_stay_beside_delta_and_own():
    """The addition sees what trains and travels, and no more."""

    def extra_trees(order, memory, outcome):
        assert set(outcome.before) == set(outcome.after) == {"a"}
        return {"control": outcome.after}, {"control": outcome.before}

    rule = ClientRule(
        shares=lambda name, rnd: name != "b", trains=lambda name, rnd: name != "c", extra_trees=extra_trees
    )
    sent, kept = finish(rule)
    assert {k: values(t) for k, t in sent.items()} == {"delta": {"a": 1.0, "c": 3.0}, "control": {"a": 2.0}}
    assert {k: values(t) for k, t in kept.items()} == {"own": {"b": 3.0}, "control": {"a": 1.0}}


@pytest.mark.parametrize(
    "rule",
    [
        ClientRule(trains=lambda name, rnd: True),
        ClientRule(correct=lambda order, memory: None),
        ClientRule(after_step=lambda order, memory, rate: None),
        ClientRule(wants_gradients=True),
    ],
)
def test_a_rule_that_touches_the_steps_is_not_plain(rule):
    assert not rule.plain
    assert ClientRule(shares=lambda name, rnd: False).plain
