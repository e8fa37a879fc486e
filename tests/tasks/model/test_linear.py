"""Products by oneDNN equal torch's, in values and gradient."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear as torchs

from tasks.model import linear
from tasks.model.linear import FrozenLinear, agrees, is_onednn_faster, product, use_onednn

AMD, INTEL = "vendor_id\t: AuthenticAMD\nflags\t: avx2", "processor\t: 0\nvendor_id\t: GenuineIntel\n"


@pytest.fixture(autouse=True)
def _every_product_goes_through_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "LEAST", 0)
    monkeypatch.setattr(linear, "ENABLED", linear.AVAILABLE)


@pytest.mark.parametrize(
    ("cpuinfo", "capability", "faster"),
    [
        (AMD, "AVX512", True),
        (AMD, "AVX2", False),
        (INTEL, "AVX512", False),
        (INTEL, "AVX2", False),
        ("", "AVX512", False),
    ],
)
def test_the_choice_depends_on_the_processor(cpuinfo: str, capability: str, faster: bool) -> None:
    assert is_onednn_faster(cpuinfo, capability) is faster


def test_layers_are_unchanged_where_torch_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "ENABLED", False)
    layer = nn.Linear(2, 2).requires_grad_(False)
    use_onednn(layer)
    assert type(layer) is nn.Linear


@pytest.mark.skipif(not linear.AVAILABLE, reason="this torch has no oneDNN")
def test_the_operator_is_tried_before_it_is_used() -> None:
    operator = torch.ops.mkldnn._linear_pointwise
    assert agrees(operator)
    assert not agrees(lambda *arguments: operator(*arguments) + 1e-3), "a wrong value"
    assert not agrees(lambda x, weight, bias, *rest: operator(x, weight, None, *rest)), "no bias"
    assert not agrees(lambda x, weight, bias: torchs(x, weight, bias)), "another signature"


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 5), (2, 7, 5)])
def test_a_frozen_layer_equals_torchs_layer(bias: bool, shape: tuple[int, ...]) -> None:
    """1e-6 is float32 rounding of numbers near 1; an expanded gradient is not contiguous."""
    rng = torch.Generator().manual_seed(0)
    layer = nn.Linear(5, 3, bias=bias).requires_grad_(False)
    x = torch.randn(shape, generator=rng)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    want = layer(a)
    use_onednn(layer)
    got = layer(b)
    assert type(layer) is FrozenLinear
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    for out in (want, got):
        out.sum(-1).square().sum().backward()
    assert b.grad is not None
    torch.testing.assert_close(b.grad, a.grad, rtol=1e-6, atol=1e-5)


def test_the_weight_may_be_transposed() -> None:
    x, weight = torch.randn(7, 5), torch.randn(5, 3)
    torch.testing.assert_close(product(x, weight.T), x @ weight, rtol=1e-6, atol=1e-6)


def test_other_dtypes_use_torchs_product() -> None:
    x, weight = torch.randn(7, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    assert torch.equal(product(x, weight), torchs(x, weight))


def test_trained_layers_are_unchanged() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    use_onednn(model)
    assert [type(layer) for layer in model] == [nn.Linear, FrozenLinear]
