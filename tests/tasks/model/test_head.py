"""The head equals torch's log-softmax and autograd."""

import pytest
import torch
from torch import nn

from tasks.model import head
from tasks.model.head import Head


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK_ROWS", 4)


@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradient_equal_autograds(bias: bool) -> None:
    """11 rows in chunks of 4; 1e-6 is float32 rounding of numbers near 1."""
    rng = torch.Generator().manual_seed(0)
    linear = nn.Linear(6, 9, bias=bias).requires_grad_(False)
    linear.weight.copy_(torch.randn(9, 6, generator=rng))
    features = torch.randn(11, 6, generator=rng)
    targets = torch.randint(0, 9, (11,), generator=rng)
    weights = torch.randn(11, generator=rng)
    a, b = features.clone().requires_grad_(), features.clone().requires_grad_()
    got = Head(linear).logps(a, targets)
    want = linear(b).log_softmax(1).gather(1, targets[:, None])[:, 0]
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    assert a.grad is not None
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(Head(linear).logps(a, targets), want, rtol=1e-6, atol=1e-6)


def test_the_first_choice_is_the_argmax() -> None:
    """With a linear layer and without."""
    linear = nn.Linear(6, 9).requires_grad_(False)
    features, targets = torch.randn(200, 6), torch.arange(200) % 9
    want = linear(features).argmax(1) == targets
    assert 0 < want.sum() < 200
    assert torch.equal(Head(linear).scores(features, targets)[1], want)
    assert torch.equal(Head(None).scores(linear(features), targets)[1], want)


def test_an_impossible_token_keeps_its_log_probability() -> None:
    """logits 0 and -300: log p = -300 although p is 0 in float32."""
    linear = nn.Linear(1, 2, bias=False).requires_grad_(False)
    linear.weight.copy_(torch.tensor([[0.0], [-300.0]]))
    features = torch.ones(1, 1, requires_grad=True)
    logp = Head(linear).logps(features, torch.tensor([1]))
    assert logp.item() == -300.0
    logp.sum().backward()
    assert features.grad is not None
    assert features.grad.item() == -300.0  # W[t] - p W


def test_without_a_linear_layer_features_are_logits() -> None:
    logits = torch.tensor([[0.0, 0.0], [1.0, 3.0]], requires_grad=True)
    got = Head(None).logps(logits, torch.tensor([0, 1]))
    assert got.tolist() == pytest.approx([-0.693147, -0.126928], abs=1e-6)
    assert got.requires_grad


@pytest.mark.parametrize("bias", [False, True])
def test_logits_of_some_tokens_equal_those_of_the_whole_product(bias: bool) -> None:
    """Two tokens for each row, different in each; values and gradient."""
    rng = torch.Generator().manual_seed(0)
    linear = nn.Linear(6, 9, bias=bias).requires_grad_(False)
    features, weights = torch.randn(5, 6, generator=rng), torch.randn(5, 2, generator=rng)
    targets = torch.randint(0, 9, (5, 2), generator=rng)
    a, b = features.clone().requires_grad_(), features.clone().requires_grad_()
    got, want = Head(linear).logits(a, targets), linear(b).gather(1, targets)
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-6)
    assert torch.equal(Head(None).logits(linear(features), targets), linear(features).gather(1, targets))
