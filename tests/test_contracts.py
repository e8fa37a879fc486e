"""What every plugin must hold; a new file is tested here before its author writes a test."""

import copy
import inspect
import sys
from dataclasses import is_dataclass

import pytest
import torch

from core.plugins import build, names, plugin
from core.types import Client, ServerState, Update
from strategies.base import Strategy

PACKAGES = ("strategies", "tasks", "tasks.data", "evals")
ALL = [(package, name) for package in PACKAGES for name in names(package)]
EVERYONE = [Client(0, 10), Client(1, 30), Client(2, 20)]


def tree(seed: int) -> dict:
    rng = torch.Generator().manual_seed(seed)
    return {
        "l.lora_A.weight": torch.randn(2, 3, generator=rng),
        "l.lora_B.weight": torch.randn(3, 2, generator=rng),
    }


@pytest.mark.parametrize(("package", "name"), ALL)
def test_a_plugin_is_a_dataclass_with_a_sentence_and_builds_from_nothing(package, name):
    cls = plugin(package, name)
    assert is_dataclass(cls)
    doc = sys.modules[cls.__module__].__doc__
    assert doc
    assert len(doc.splitlines()[0]) > 20
    assert build(package, name, {}) == build(package, name, {})


@pytest.mark.parametrize("name", names("strategies"))
def test_a_strategy_says_where_it_comes_from(name):
    doc = inspect.getdoc(sys.modules[plugin("strategies", name).__module__])
    assert "eviation" in doc
    assert any(word in doc for word in ("arXiv", "Source", "et al."))


def one_round(strategy: Strategy, state: ServerState, rnd: int) -> ServerState:
    orders = strategy.plan_train(state, rnd, EVERYONE)
    shares = strategy.client_rule().shares
    updates = []
    for order in orders:
        delta = {n: t for n, t in tree(100 * rnd + order.client).items() if shares(n, rnd)}
        updates.append(
            Update(order.client, 10 + order.client, order.adapter, {"delta": delta}, {"loss": 1.0})
        )
    state, _ = strategy.merge_train(state, rnd, updates)
    scores = [Update(c.id, 5, "global", {}, {"logps/accuracies": 0.5}) for c in EVERYONE]
    return strategy.merge_evaluate(state, rnd, scores)[0]


@pytest.mark.parametrize("name", names("strategies"))
def test_hooks_are_pure(name):
    """Same arguments, same result; the arguments and the strategy itself are as they were."""
    strategy = build("strategies", name, {})
    state = strategy.init({"global": tree(0)}, seed=1)
    before, fields = copy.deepcopy(state), copy.deepcopy(vars(strategy))
    first, second = one_round(strategy, state, 1), one_round(strategy, state, 1)
    assert vars(strategy) == fields
    for adapter, kept in before.adapters.items():
        assert all(kept[n].equal(state.adapters[adapter][n]) for n in kept)
        assert all(first.adapters[adapter][n].equal(second.adapters[adapter][n]) for n in kept)


@pytest.mark.parametrize("name", names("strategies"))
def test_no_news_changes_nothing(name):
    """All deltas zero from a fresh state: every method leaves the adapter where it was."""
    strategy = build("strategies", name, {})
    state = strategy.init({"global": tree(0)}, seed=1)
    shares = strategy.client_rule().shares
    zero = {n: torch.zeros_like(t) for n, t in tree(0).items() if shares(n, 1)}
    orders = strategy.plan_train(state, 1, EVERYONE)
    after, _ = strategy.merge_train(
        state, 1, [Update(o.client, 3, o.adapter, {"delta": zero}, {}) for o in orders]
    )
    assert all(after.adapters["global"][n].equal(t) for n, t in state.adapters["global"].items())
