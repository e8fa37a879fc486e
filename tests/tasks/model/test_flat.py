"""The flat tensor behaves like the separate tensors."""

import pytest
import torch
from torch import nn

from tasks.model.flat import Flat


def layers() -> dict[str, nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    return {
        name: nn.Parameter(torch.randn(shape, generator=rng))
        for name, shape in {"a": (3, 2), "b": (4,)}.items()
    }


def test_values_are_preserved_and_backward_fills_the_flat_gradient() -> None:
    before = {name: p.detach().clone() for name, p in layers().items()}
    flat = Flat(layers())
    assert all(torch.equal(flat.parameters[name], value) for name, value in before.items())
    (2 * flat.parameters["a"].sum() + 3 * flat.parameters["b"].sum()).backward()
    assert flat.gradients[0].tolist() == [2.0] * 6 + [3.0] * 4
    flat.zero_grad()
    assert flat.parameters["a"].grad is not None
    assert not flat.parameters["a"].grad.any()


@pytest.mark.parametrize("max_norm", [0.5, 100.0, 0.0])
def test_clipping_and_steps_equal_torchs(max_norm: float) -> None:
    """clip_grad_norm_ and AdamW on the separate tensors are the reference; 0 means no clipping."""
    flat, apart = Flat(layers()), layers()
    optimizer = torch.optim.AdamW(list(flat.weights.values()), lr=0.1, weight_decay=0.01, fused=True)
    reference = torch.optim.AdamW(list(apart.values()), lr=0.1, weight_decay=0.01)
    for step in range(3):
        flat.zero_grad()
        reference.zero_grad()
        for ps in (flat.parameters, apart):
            (((ps["a"] ** 2).sum() + (ps["b"] * step).sum()) * 3).backward()
        want = torch.nn.utils.clip_grad_norm_(list(apart.values()), max_norm or float("inf"))
        assert flat.clip(max_norm) == pytest.approx(float(want), rel=1e-6)
        clipped = torch.cat([p.grad.flatten() for p in apart.values() if p.grad is not None])
        torch.testing.assert_close(
            flat.gradients[0], clipped, rtol=1e-6, atol=1e-6
        )  # Adam hides a wrong scale
        optimizer.step()
        reference.step()
    for name, p in apart.items():
        torch.testing.assert_close(flat.parameters[name], p, rtol=1e-6, atol=1e-6)


def test_bind_repairs_gradients_that_another_trainer_dropped() -> None:
    flat = Flat(layers())
    for p in flat.parameters.values():
        p.grad = None
        p.requires_grad_(False)
    flat.bind()
    flat.parameters["b"].sum().backward()
    assert flat.gradients[0].tolist() == [0.0] * 6 + [1.0] * 4
