"""One step by hand: what is corrected when, what is left alone, what is reported."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from core.config import TrainConfig
from tasks.kit.flat import Flat
from tasks.kit.stepper import PLAIN, Bend, Stepper

SGD = TrainConfig(optimizer="sgd", learning_rate=0.1, max_grad_norm=0.0)
ADAMW = TrainConfig(learning_rate=0.1, weight_decay=0.5, max_grad_norm=1.0)


def stepped(cfg: TrainConfig, bend: Bend, *gradients: float) -> tuple[Flat, Stepper, list[float]]:
    """Two tensors of one number each, a = 1 and b = 2, after a step with each gradient (the same for both)."""
    flat = Flat({"a": nn.Parameter(torch.tensor([1.0])), "b": nn.Parameter(torch.tensor([2.0]))})
    flat.bind(bend.trains)
    stepper, norms = Stepper(flat, cfg, bend), []
    for gradient in gradients:
        flat.zero_grad()
        sum((p * gradient).sum() for p in flat.parameters.values()).backward()  # type: ignore[union-attr]
        norms.append(stepper.step())
    return flat, stepper, norms


def values(flat: Flat) -> list[float]:
    return [p.item() for p in flat.parameters.values()]


def test_sgd_is_plain():
    flat, _, norms = stepped(SGD, PLAIN, 3.0, 4.0)
    assert values(flat) == pytest.approx([0.3, 1.3])
    assert norms == pytest.approx([3 * 2**0.5, 4 * 2**0.5])
    flat, _, _ = stepped(replace(SGD, weight_decay=0.5), PLAIN, 3.0)
    assert values(flat) == pytest.approx([1 - 0.1 * (3 + 0.5), 2 - 0.1 * (3 + 1)])


def test_a_correction_comes_before_clipping_and_the_reported_gradient_before_both():
    """Gradients 3 and 5 become 6 and 10, each clipped to a norm of 1, hence 1/sqrt 2 each."""
    bend = Bend(correct=lambda name, p, g: 2 * g, wants_gradients=True)
    flat, stepper, norms = stepped(replace(SGD, max_grad_norm=1.0), bend, 3.0, 5.0)
    assert values(flat) == pytest.approx([1 - 0.2 / 2**0.5, 2 - 0.2 / 2**0.5], abs=1e-6)
    assert norms == pytest.approx([6 * 2**0.5, 10 * 2**0.5])
    mean = stepper.mean_gradient()
    assert mean is not None
    assert {n: g.tolist() for n, g in mean.items()} == {"a": [4.0], "b": [4.0]}
    assert stepped(SGD, PLAIN, 3.0)[1].mean_gradient() is None


def test_what_comes_after_a_step_finds_the_weights_stepped():
    seen = []

    def after(name, parameter):
        seen.append((name, round(parameter.item(), 6)))
        parameter.mul_(10)

    flat, _, _ = stepped(SGD, Bend(after_step=after), 3.0)
    assert seen == [("a", 0.7), ("b", 1.7)]
    assert values(flat) == pytest.approx([7.0, 17.0])


@pytest.mark.parametrize("cfg", [SGD, ADAMW, replace(SGD, weight_decay=0.5)])
def test_a_tensor_that_does_not_train_keeps_its_value(cfg):
    """No gradient, no decay, no correction, no say in the norm; the other moves as it would alone."""
    seen = []
    bend = Bend(
        correct=lambda name, p, g: seen.append(name) or g,
        after_step=lambda name, p: seen.append(name),
        trains=lambda name: name == "b",
        wants_gradients=True,
    )
    flat, stepper, norms = stepped(cfg, bend, 3.0, 4.0)
    assert values(flat)[0] == 1.0
    assert values(flat)[1] < 2.0
    assert norms == [3.0, 4.0]
    assert set(seen) == {"b"}
    assert (stepper.mean_gradient() or {}).keys() == {"b"}
    assert flat.gradients[0][0] == 0.0
