"""Contract tests of every plugin; a new plugin file is tested here without further changes."""

import copy
import inspect
import sys
from dataclasses import is_dataclass, replace

import pytest
import torch

from core.plugins import build, names, plugin
from core.types import Client, ServerState, Update
from strategies.base import Strategy
from tests.strategies.simulated_rounds import merge

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
def test_a_plugin_is_a_documented_dataclass_with_defaults(package, name):
    cls = plugin(package, name)
    assert is_dataclass(cls)
    doc = sys.modules[cls.__module__].__doc__
    assert doc
    assert len(doc.splitlines()[0]) > 20
    assert build(package, name, {}) == build(package, name, {})


@pytest.mark.parametrize("name", names("strategies"))
def test_a_strategy_names_its_source_and_deviations(name):
    doc = inspect.getdoc(sys.modules[plugin("strategies", name).__module__])
    assert "eviation" in doc
    assert any(word in doc for word in ("arXiv", "Source", "et al."))


def start(strategy: Strategy) -> ServerState:
    state = strategy.init({"global": tree(0)}, seed=1)
    facts = {"clients": len(EVERYONE), "examples": {str(c.id): c.examples for c in EVERYONE}, "rounds": 8}
    return replace(state, facts={**state.facts, **facts})


def updates(strategy: Strategy, state: ServerState, rnd: int, *, scale: float = 1.0) -> list[Update]:
    """Updates as clients would send them by the strategy's client rule, in the layout of the shared tensors."""
    rule, replies = strategy.client_rule(), []
    for order in strategy.plan_train(state, rnd, EVERYONE):
        deltas = {n: t * scale for n, t in tree(100 * rnd + order.client).items() if rule.shares(n, rnd)}
        trees = dict.fromkeys(rule.sends, deltas)
        replies.append(Update(order.client, 10 + order.client, order.adapter, trees, {"loss": 1.0}, tokens=5))
    return replies


def one_round(strategy: Strategy, state: ServerState, rnd: int) -> ServerState:
    state, _ = merge(strategy, state, rnd, updates(strategy, state, rnd))
    orders = strategy.plan_evaluate(state, rnd, EVERYONE)
    scores = [Update(o.client, 5, o.adapter, {}, {"logps/accuracies": 0.5}) for o in orders]
    return strategy.merge_evaluate(state, rnd, scores)[0]


def same(a: ServerState, b: ServerState) -> bool:
    first, second = {**a.adapters, **a.memory}, {**b.adapters, **b.memory}
    return first.keys() == second.keys() and all(
        t.equal(second[k][n]) for k in first for n, t in first[k].items()
    )


@pytest.mark.parametrize("name", names("strategies"))
def test_hooks_are_pure(name):
    """In two rounds, the same arguments give the same result, and neither they nor the strategy change."""
    strategy = build("strategies", name, {})
    state = start(strategy)
    for rnd in (1, 2):
        before, fields = copy.deepcopy(state), copy.deepcopy(vars(strategy))
        first, second = one_round(strategy, state, rnd), one_round(strategy, state, rnd)
        assert vars(strategy) == fields
        assert same(before, state)
        assert same(first, second)
        state = first


@pytest.mark.parametrize("name", names("strategies"))
def test_zero_deltas_change_no_adapter(name):
    """From a new state, with all deltas zero."""
    strategy = build("strategies", name, {})
    state = start(strategy)
    after, _ = merge(strategy, state, 1, updates(strategy, state, 1, scale=0.0))
    assert same(replace(after, memory={}), replace(state, memory={}))


@pytest.mark.parametrize("name", names("strategies"))
def test_final_adapters_have_the_layout_of_the_model(name):
    strategy = build("strategies", name, {})
    adapters = strategy.final(one_round(strategy, start(strategy), 1))
    assert adapters
    assert all(
        {n: t.shape for n, t in x.items()} == {n: t.shape for n, t in tree(0).items()}
        for x in adapters.values()
    )


@pytest.mark.parametrize("name", names("tasks"))
def test_a_task_that_names_trl_as_an_engine_declares_how_trl_trains_it(name):
    task = build("tasks", name, {})
    assert "accord" in task.engines
    assert "trl" not in task.engines or task.trl({}, 2) is not None
