"""Contract tests of every plugin; a new plugin file is tested here without further changes."""

import ast
import contextlib
import copy
import importlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import is_dataclass, replace
from itertools import product

import pytest
import torch

from core.errors import ConfigError
from core.factors import MERGED
from core.plugins import build, default_options, names, plugin
from core.sections import LoraConfig
from core.types import Client, ServerState, Update
from strategies.aggregation.lora import MERGING
from strategies.base import Strategy
from strategies.clients.rule import ClientRule
from strategies.fedavg import FedAvg
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


def reads(cls: type, hooks: Iterable[str]) -> set[str]:
    """The attributes of `self` that the hooks of a class read, and the methods that these call."""
    attributes, queue = set[str](), list(hooks)
    while queue:
        for method in definitions(cls, queue.pop()):
            tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
            names = {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "self"
            }
            queue += names - attributes
            attributes |= names
    return attributes


def definitions(cls: type, name: str) -> Iterator[Callable]:
    """The functions that a call of a method runs: the class's own, and the overridden one if it calls super()."""
    for owner in (c for c in cls.__mro__ if name in vars(c)):
        member = vars(owner)[name]
        method = member.fget if isinstance(member, property) else getattr(member, "func", member)
        if not inspect.isfunction(method):
            return
        yield method
        if "super()" not in inspect.getsource(method):
            return


@pytest.mark.parametrize(("package", "name"), ALL)
def test_a_plugin_ignores_no_option(package, name):
    """An option that is inherited, but read only by a method that the plugin overrides, would have no effect."""
    cls, contract = plugin(package, name), importlib.import_module(f"{package}.base")
    hooks = [
        n for c in vars(contract).values() if isinstance(c, type) for n in vars(c) if not n.startswith("_")
    ]
    assert {key.replace("-", "_") for key in default_options(cls)} <= reads(cls, hooks)


@pytest.mark.parametrize("name", names("strategies"))
def test_a_strategy_names_its_source_and_deviations(name):
    doc = inspect.getdoc(sys.modules[plugin("strategies", name).__module__])
    assert "eviation" in doc
    assert any(word in doc for word in ("arXiv", "Source", "et al."))


def start(strategy: Strategy) -> ServerState:
    state = strategy.init({"global": tree(0)}, seed=1)
    examples = {c.id: c.examples for c in EVERYONE}
    return replace(state, clients=len(EVERYONE), examples=examples, rounds=8)


def updates(strategy: Strategy, state: ServerState, rnd: int, *, scale: float = 1.0) -> list[Update]:
    """Updates as clients would send them by the strategy's client rule, in the layout of the shared tensors."""
    rule, replies = strategy.local_rule(), []
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


METHODS = ("separate", "ffa", "rolora", "fedsa", "fedex", "flora", "flexlora")


@pytest.mark.parametrize("aggregation", METHODS)
@pytest.mark.parametrize("name", names("strategies"))
def test_a_strategy_does_what_lora_aggregation_needs_or_refuses_it(name, aggregation):
    """Its rule trains and shares nothing more; its orders hold the merged factors, as the plain FedAvg's do."""
    lora = LoraConfig(r=2, alpha=4, aggregation=aggregation)
    with contextlib.suppress(ConfigError):  # refused
        check_lora(build("strategies", name, {}).with_lora(lora), lora)


def check_lora(strategy: Strategy, lora: LoraConfig) -> None:
    reference = build("strategies", "fedavg", {}).with_lora(lora)
    for rnd in (1, 2):
        rule, limits = strategy.local_rule(), reference.local_rule()
        assert all(limits.trains(n, rnd) for n in tree(0) if rule.trains(n, rnd))
        assert all(limits.shares(n, rnd) for n in tree(0) if rule.shares(n, rnd))
    if lora.aggregation not in MERGING:
        return
    state = start(strategy)
    state = replace(state, memory={**state.memory, **{f"{a}.{MERGED}": tree(1) for a in state.adapters}})
    for orders in (strategy.plan_train(state, 2, EVERYONE), strategy.plan_evaluate(state, 2, EVERYONE)):
        assert all(MERGED in order.trees for order in orders)


class Forgetful(FedAvg):
    """A strategy that ignores the rule it is given."""

    def client_rule(self, rule: ClientRule) -> ClientRule:
        return ClientRule()


@pytest.mark.parametrize("aggregation", ["ffa", "rolora", "fedsa"])
def test_a_client_rule_that_ignores_lora_aggregation_stays_within_it(aggregation):
    lora = LoraConfig(r=2, alpha=4, aggregation=aggregation)
    forgetful, limits = Forgetful().with_lora(lora).local_rule(), FedAvg().with_lora(lora).local_rule()
    for rnd, name in product((1, 2), tree(0)):
        assert (forgetful.trains(name, rnd), forgetful.shares(name, rnd)) == (
            limits.trains(name, rnd),
            limits.shares(name, rnd),
        )
