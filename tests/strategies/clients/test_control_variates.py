"""SCAFFOLD's client arithmetic, through the engine's own optimiser steps in float64, with gradients given."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import nn

from core.errors import ConfigError
from core.sections import TrainConfig
from core.tree import Tree, sub
from core.types import Order
from strategies.clients.control_variates import scaffold_rule
from strategies.clients.rule import ClientRule, Memory, Outcome
from tasks.model.flat import Flat
from tasks.training.stepper import LocalHooks, Stepper
from tests.vectors import OPENFEDLLM

SGD = TrainConfig(optimizer="sgd", learning_rate=0.1, max_grad_norm=0.0)
ADAMW = TrainConfig(optimizer="adamw", learning_rate=0.1, max_grad_norm=0.0)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def named(values) -> Tree:
    return {n: torch.tensor(v) for n, v in values.items()}


def zeros(like: Tree) -> Tree:
    return {n: torch.zeros_like(t) for n, t in like.items()}


def locally(
    rule: ClientRule,
    x: Tree,
    c: Tree,
    gradients: Sequence[Tree],
    cfg: TrainConfig,
    memory: Memory | None = None,
) -> tuple[Tree, dict[str, Tree], dict[str, Tree]]:
    """(local model, what is sent, what is kept) after a step for each of `gradients`."""
    order, memory = Order(0, {"global": x, "control": c}, round=1), memory or {}
    flat = Flat({n: nn.Parameter(t.clone()) for n, t in x.items()})
    stepper = Stepper(
        flat,
        cfg,
        LocalHooks(
            rule.correct(order, memory),
            rule.after_step(order, memory, cfg.learning_rate),
            lambda name: rule.trains(name, 1),
            rule.wants_gradients,
        ),
    )
    for gradient in gradients:
        for name, parameter in stepper.trained.items():
            assert parameter.grad is not None
            parameter.grad.copy_(gradient[name])
        stepper.step()
    after = {n: p.detach().clone() for n, p in flat.parameters.items()}
    outcome = Outcome(x, after, stepper.steps, cfg.learning_rate, stepper.mean_gradient())
    return after, *rule.finish(order, memory, outcome)


def close(got: Tree, want: Tree, *, atol: float) -> None:
    assert got.keys() == want.keys()
    for name, values in want.items():
        torch.testing.assert_close(got[name], values, rtol=0, atol=atol)


def test_the_clients_of_three_rounds_are_openfedllms():
    """Corrections, local models, controls and their changes; the server's x and c are given."""
    vector = OPENFEDLLM["scaffold_3rounds_sgd"]
    given, rule = vector["inputs"], scaffold_rule("openfedllm", "steps")
    assert given["lr"] == SGD.learning_rate
    x = named(given["global_round0"])
    c, memory = zeros(x), {}
    for gradients, want in zip(given["gradients"], vector["outputs"]["rounds"], strict=True):
        for client, wanted in want["clients"].items():
            steps = [named(g) for g in gradients[client]]
            mine = memory.get(client, {})
            close(sub(c, mine.get("control", zeros(c))), named(wanted["correction"]), atol=1e-12)
            after, sent, kept = locally(rule, x, c, steps, SGD, mine)
            close(after, named(wanted["local_model"]), atol=1e-12)
            close(sent["delta"], sub(named(wanted["local_model"]), x), atol=1e-12)
            close(kept["control"], named(wanted["c_i_new"]), atol=1e-12)
            close(sent["control"], named(wanted["delta_c_i"]), atol=1e-12)
            memory[client] = kept
        x, c = named(want["global"]), named(want["c"])


@pytest.mark.parametrize("variant", ["paper", "openfedllm"])
def test_under_adam_a_control_made_from_steps_is_a_direction_and_no_gradient(variant):
    vector = OPENFEDLLM["scaffold_adamw_control_variate"]
    x, gradients = named(vector["inputs"]["w0"]), [named(g) for g in vector["inputs"]["gradients"]]
    _, _, kept = locally(scaffold_rule(variant, "steps"), x, zeros(x), gradients, ADAMW)
    close(kept["control"], named(vector["outputs"]["c_i_new"]), atol=1e-9)
    _, _, kept = locally(scaffold_rule("paper", "gradients"), x, zeros(x), gradients, ADAMW)
    close(kept["control"], named(vector["outputs"]["mean_gradient"]), atol=1e-12)


def drawn(seed: int) -> Tree:
    rng = torch.Generator().manual_seed(seed)
    return {n: torch.randn(shape, generator=rng) for n, shape in {"a": (3, 2), "b": (4,)}.items()}


def test_under_plain_sgd_both_controls_are_the_mean_gradient():
    x, c, c_k, gradients = drawn(0), drawn(1), drawn(2), [drawn(10 + i) for i in range(3)]
    mean = {n: torch.stack([g[n] for g in gradients]).mean(0) for n in x}
    ends = []
    for variant, control in (("paper", "steps"), ("paper", "gradients"), ("openfedllm", "steps")):
        after, sent, kept = locally(scaffold_rule(variant, control), x, c, gradients, SGD, {"control": c_k})
        close(kept["control"], mean, atol=1e-12)
        close(sent["control"], sub(mean, c_k), atol=1e-12)
        ends.append(after)
    close(ends[1], ends[0], atol=1e-12)
    close(
        ends[2], ends[0], atol=1e-12
    )  # under SGD it is the same whether the gradient or the weight is shifted


def test_the_corrected_step_by_hand():
    """w = 1, eta = 0.1, g = 3, c = 0.5, c_k = 2: w - 0.1 (3 - 2 + 0.5) = 0.85."""
    one = lambda v: {"w": torch.tensor([v])}  # noqa: E731
    for variant in ("paper", "openfedllm"):
        rule = scaffold_rule(variant, "steps")
        after, sent, _ = locally(rule, one(1.0), one(0.5), [one(3.0)], SGD, {"control": one(2.0)})
        assert after["w"].item() == pytest.approx(0.85)
        assert sent["control"]["w"].item() == pytest.approx(3.0 - 2.0)


def test_the_paper_bends_adams_gradient_and_openfedllm_steps_past_it():
    """From zero moments Adam's first step is eta times the sign of what it is given. g = 3 and c = -5: the corrected
    gradient is -2, so the paper's step goes up by 0.1; the other goes down by 0.1 and then up by 0.1 * 5."""
    one = lambda v: {"w": torch.tensor([v])}  # noqa: E731
    ends = [
        locally(scaffold_rule(variant, "steps"), one(1.0), one(-5.0), [one(3.0)], ADAMW)[0]["w"].item()
        for variant in ("paper", "openfedllm")
    ]
    assert ends == pytest.approx([1.1, 1.4])


@pytest.mark.parametrize(
    ("variant", "control"), [("paper", "steps"), ("paper", "gradients"), ("openfedllm", "steps")]
)
def test_tensors_that_do_not_train_or_travel_have_no_control_and_are_not_corrected(variant, control):
    """b trains and stays at the client; a's control of before the round in which it rests is kept."""
    rule = scaffold_rule(
        variant,
        control,
        ClientRule(shares=lambda name, rnd: name == "a", trains=lambda name, rnd: name == "b" or rnd == 1),
    )
    x, gradients = drawn(0), [drawn(1), drawn(2)]
    c = {"a": drawn(3)["a"]}
    after, sent, kept = locally(rule, x, c, gradients, SGD)
    assert sent.keys() == {"delta", "control"}
    assert sent["control"].keys() == sent["delta"].keys() == kept["control"].keys() == {"a"}
    close({"b": after["b"]}, {"b": x["b"] - 0.1 * (gradients[0]["b"] + gradients[1]["b"])}, atol=1e-12)
    resting = rule.finish(
        Order(0, {"global": x, "control": c}, round=2), kept, Outcome(x, x, 2, 0.1, {"b": x["b"]})
    )
    assert resting[0]["control"] == {}
    close(resting[1]["control"], kept["control"], atol=0)


def test_a_variant_whose_control_is_fixed_refuses_another():
    with pytest.raises(ConfigError, match=r"'openfedllm' .* got control 'gradients'"):
        scaffold_rule("openfedllm", "gradients")
