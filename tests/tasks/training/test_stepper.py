"""Optimiser steps computed by hand: the order of corrections, frozen tensors, reported gradients and moments."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from core.sections import TrainConfig
from tasks.model.flat import Flat
from tasks.training.stepper import NO_HOOKS, LocalHooks, Stepper

SGD = TrainConfig(optimizer="sgd", learning_rate=0.1, max_grad_norm=0.0)
ADAMW = TrainConfig(learning_rate=0.1, weight_decay=0.5, max_grad_norm=1.0)


def stepped(cfg: TrainConfig, hooks: LocalHooks, *gradients: float) -> tuple[Flat, Stepper, list[float]]:
    """Two tensors of one number each, a = 1 and b = 2, after a step with each gradient (the same for both)."""
    flat = Flat({"a": nn.Parameter(torch.tensor([1.0])), "b": nn.Parameter(torch.tensor([2.0]))})
    flat.bind(hooks.trains)
    stepper, norms = Stepper(flat, cfg, hooks), []
    for gradient in gradients:
        flat.zero_grad()
        sum((p * gradient).sum() for p in flat.parameters.values()).backward()  # type: ignore[union-attr]
        norms.append(stepper.step())
    return flat, stepper, norms


def values(flat: Flat) -> list[float]:
    return [p.item() for p in flat.parameters.values()]


def test_sgd_equals_the_formula():
    flat, _, norms = stepped(SGD, NO_HOOKS, 3.0, 4.0)
    assert values(flat) == pytest.approx([0.3, 1.3])
    assert norms == pytest.approx([3 * 2**0.5, 4 * 2**0.5])
    flat, _, _ = stepped(replace(SGD, weight_decay=0.5), NO_HOOKS, 3.0)
    assert values(flat) == pytest.approx([1 - 0.1 * (3 + 0.5), 2 - 0.1 * (3 + 1)])


def test_a_correction_comes_before_clipping_and_the_reported_gradient_before_both():
    """Gradients 3 and 5 become 6 and 10, each clipped to a norm of 1, hence 1/sqrt 2 each."""
    hooks = LocalHooks(correct=lambda name, p, g: 2 * g, wants_gradients=True)
    flat, stepper, norms = stepped(replace(SGD, max_grad_norm=1.0), hooks, 3.0, 5.0)
    assert values(flat) == pytest.approx([1 - 0.2 / 2**0.5, 2 - 0.2 / 2**0.5], abs=1e-6)
    assert norms == pytest.approx([6 * 2**0.5, 10 * 2**0.5])
    mean = stepper.mean_gradient()
    assert mean is not None
    assert {n: g.tolist() for n, g in mean.items()} == {"a": [4.0], "b": [4.0]}
    assert stepped(SGD, NO_HOOKS, 3.0)[1].mean_gradient() is None


def test_after_step_sees_the_updated_weights():
    calls = []

    def after(name, parameter):
        calls.append((name, round(parameter.item(), 6)))
        parameter.mul_(10)

    flat, _, _ = stepped(SGD, LocalHooks(after_step=after), 3.0)
    assert calls == [("a", 0.7), ("b", 1.7)]
    assert values(flat) == pytest.approx([7.0, 17.0])


@pytest.mark.parametrize("cfg", [SGD, ADAMW, replace(SGD, weight_decay=0.5)])
def test_a_frozen_tensor_keeps_its_value(cfg):
    """No gradient, decay, correction or part in the norm; the other tensor moves as it would alone."""
    calls = []
    hooks = LocalHooks(
        correct=lambda name, p, g: calls.append(name) or g,
        after_step=lambda name, p: calls.append(name),
        trains=lambda name: name == "b",
        wants_gradients=True,
    )
    flat, stepper, norms = stepped(cfg, hooks, 3.0, 4.0)
    assert values(flat)[0] == 1.0
    assert values(flat)[1] < 2.0
    assert norms == [3.0, 4.0]
    assert set(calls) == {"b"}
    assert (stepper.mean_gradient() or {}).keys() == {"b"}
    assert flat.gradients[0][0] == 0.0


KEEP = TrainConfig(learning_rate=0.1, weight_decay=0.01, optimizer_state="keep")


def test_saved_moments_continue_the_optimiser():
    """Two steps and two more equal four steps to the last bit, and only with the moments."""
    gradients = [3.0, -1.0, 0.5, 2.0]
    whole, all_four, _ = stepped(KEEP, NO_HOOKS, *gradients)
    ends = {}
    for cfg in (KEEP, replace(KEEP, optimizer_state="reset")):
        first, half, _ = stepped(cfg, NO_HOOKS, *gradients[:2])
        flat = Flat({n: nn.Parameter(p.detach().clone()) for n, p in first.parameters.items()})
        rest = Stepper(flat, cfg, LocalHooks(moments=half.moments()))
        for gradient in gradients[2:]:
            for tensor in flat.gradients:
                tensor.fill_(gradient)
            rest.step()
        ends[cfg.optimizer_state] = flat, rest.moments()
    flat, moments = ends["keep"]
    assert values(flat) == values(whole)
    assert {n: t.item() for n, t in moments["adam.step"].items()} == {"a": 4.0, "b": 4.0}
    for name, tree in all_four.moments().items():
        assert all(tree[n].equal(moments[name][n]) for n in tree), name
    flat, moments = ends["reset"]
    assert values(flat) != values(whole)
    assert moments == {}


def test_the_moments_of_a_frozen_tensor_are_kept_with_their_step_count():
    _, first, _ = stepped(KEEP, NO_HOOKS, 3.0)
    before = first.moments()
    copies = {name: {n: t.clone() for n, t in tree.items()} for name, tree in before.items()}
    flat, second, _ = stepped(KEEP, LocalHooks(trains=lambda name: name == "b", moments=before), 1.0, 1.0)
    after = second.moments()
    assert values(flat)[0] == 1.0
    for name, tree in after.items():
        assert tree["a"].equal(copies[name]["a"]), name
        assert not tree["b"].equal(copies[name]["b"]), name
        assert all(before[name][n].equal(copies[name][n]) for n in "ab"), "saved moments are not modified"
    assert (after["adam.step"]["a"].item(), after["adam.step"]["b"].item()) == (1.0, 3.0)
