import pytest
import torch

from core.types import Order
from strategies.clients.proximal import fedprox_rule, proximal
from strategies.clients.rule import ClientRule
from tests.vectors import OPENFEDLLM


def named(values):
    return {n: torch.tensor(v, dtype=torch.float64) for n, v in values.items()}


def test_term_and_gradient_are_openfedllms():
    vector = OPENFEDLLM["fedprox_term"]
    given, want = vector["inputs"], vector["outputs"]
    w, x, mu = named(given["w"]), named(given["w_global"]), given["mu"]
    terms = {n: proximal(w[n], x[n], mu) for n in w}
    loss = given["task_loss"] + sum(float(value) for value, _ in terms.values())
    assert loss == pytest.approx(want["loss"], rel=0, abs=1e-12)
    correct = fedprox_rule(mu).correct(Order(0, {"global": x}, round=1), {})
    assert correct
    for name, gradient in named(want["grad"]).items():
        torch.testing.assert_close(terms[name][1], gradient, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            correct(name, w[name], torch.zeros_like(w[name])), gradient, rtol=0, atol=1e-12
        )


def test_the_pull_is_added_and_goes_to_where_the_round_started():
    """mu 0.5: 1 + 0.5 (4 - 2) = 2 for the shared tensor; 1 + 0.5 (4 - 3) = 1.5 for the client's own, which started
    at 3."""
    rule = fedprox_rule(0.5, ClientRule(shares=lambda name, rnd: name == "a"))
    order = Order(0, {"global": {n: torch.tensor([2.0]) for n in "ab"}}, round=1)
    correct = rule.correct(order, {"own": {"b": torch.tensor([3.0])}})
    assert correct
    got = {n: correct(n, torch.tensor([4.0]), torch.tensor([1.0])).item() for n in "ab"}
    assert got == {"a": 2.0, "b": 1.5}
    assert not rule.shares("b", 1)
