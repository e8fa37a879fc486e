"""Packed forks give the values and gradients of padded batches with full logits, for several architectures."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from core.sections import LoraConfig, ModelConfig
from tasks.forward.logprobs import completion_logps, with_mismatched
from tasks.forward.modes import reference, training
from tasks.forward.setup import load_base
from tasks.model.adapter import initial_adapter, set_adapter
from tasks.model.base import Base
from tasks.model.head import Head
from tests import tiny

FORKS = [
    (tuple(range(5, 24)), ((30, 31, 32, 2), tuple(range(40, 59)), (7,))),
    ((1, 20), ((2,), (33, 34, 35))),
]
MISMATCHED = [(8, 9, 10, 11, 2), (60,)]


def measured(base: Base, forks=FORKS) -> tuple[Tensor, Tensor]:
    """Log-probabilities, and the gradient of a sum in which every completion counts differently."""
    base.flat.bind()
    base.flat.zero_grad()
    logps = completion_logps(base, forks)
    (logps * torch.arange(1.0, len(logps) + 1)).sum().backward()
    return logps.detach(), base.flat.gradients[0].clone()


def on_padded_path(base: Base, measure):
    head, base.head, base.packed = base.head, Head(None), False
    try:
        return measure()
    finally:
        base.head, base.packed = head, True


@pytest.fixture(scope="module", params=["llama", "mistral", "gpt2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Grouped keys, a sliding window of 8 tokens, learned positions; with a random adapter."""
    folder = tiny.folder(tmp_path_factory.mktemp("logprobs") / "model", request.param)
    base = load_base(ModelConfig(name=str(folder)), LoraConfig(r=4, target_modules="all-linear"))
    set_adapter(base, tiny.random_adapter(base))
    return base


def test_packed_forks_equal_padded_batches(base: Base) -> None:
    """1e-5 relative: two orders of summation in float32."""
    assert base.packed
    logps, gradient = measured(base)
    want, want_gradient = on_padded_path(base, lambda: measured(base))
    torch.testing.assert_close(logps, want, rtol=1e-5, atol=1e-5)
    assert (gradient - want_gradient).norm() / want_gradient.norm() < 1e-5


def test_a_fork_is_not_changed_by_its_neighbours(base: Base) -> None:
    with torch.no_grad():
        alone = torch.cat([completion_logps(base, [fork]) for fork in FORKS])
        torch.testing.assert_close(completion_logps(base, FORKS), alone, rtol=1e-5, atol=1e-5)


def test_a_mismatched_completion_scores_like_a_completion(base: Base) -> None:
    logps, extra = with_mismatched(base, FORKS, MISMATCHED)
    assert logps.requires_grad
    assert not extra.requires_grad
    joined = [(prompt, (completion,)) for (prompt, _), completion in zip(FORKS, MISMATCHED, strict=True)]
    torch.testing.assert_close(extra, completion_logps(base, joined).detach(), rtol=1e-5, atol=1e-5)
    padded, padded_extra = on_padded_path(base, lambda: with_mismatched(base, FORKS, MISMATCHED))
    torch.testing.assert_close(logps, padded, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(extra, padded_extra, rtol=1e-5, atol=1e-5)


def test_mismatched_completions_do_not_change_the_gradient(base: Base) -> None:
    _, want = measured(base)
    base.flat.zero_grad()
    logps, _ = with_mismatched(base, FORKS, [MISMATCHED[0], ()])
    (logps * torch.arange(1.0, len(logps) + 1)).sum().backward()
    assert torch.equal(base.flat.gradients[0], want)


def test_inside_reference_the_adapter_is_off(base: Base) -> None:
    with reference(base):
        frozen = completion_logps(base, FORKS)
    assert not frozen.requires_grad
    assert (frozen - completion_logps(base, FORKS)).abs().max() > 0.1
    moved = tiny.random_adapter(base)
    set_adapter(base, initial_adapter(base, 0))
    torch.testing.assert_close(completion_logps(base, FORKS).detach(), frozen, rtol=1e-6, atol=1e-6)
    set_adapter(base, moved)


def test_padded_batches_run_through_the_same_model(base: Base) -> None:
    """Generation and other trainers use the model without a layout: a cache, a mask, many sequences."""
    prompt = torch.tensor([[1, 9, 12, 40]])
    made = base.causal.generate(prompt, max_new_tokens=5, do_sample=False, pad_token_id=2)  # type: ignore[operator]
    logits = base.causal(input_ids=made[:, :-1]).logits[0]
    assert made[0, 4:].tolist() == logits[3:].argmax(-1).tolist()


def test_a_model_with_soft_caps_is_padded_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        base = load_base(ModelConfig(name=str(tiny.folder(tmp_path, "gemma2"))), LoraConfig())
    assert not base.packed
    assert sum("padded batches" in r.message for r in caplog.records) == 1
    logps, gradient = measured(base)
    assert torch.isfinite(logps).all()
    assert gradient.norm() > 0


def test_a_trained_head_is_padded(tmp_path: Path) -> None:
    lora = LoraConfig(target_modules="q_proj,lm_head")
    base = load_base(ModelConfig(name=str(tiny.folder(tmp_path))), lora)
    assert not base.packed
    set_adapter(base, tiny.random_adapter(base))
    assert measured(base)[1].norm() > 0


def test_gradient_checkpointing_does_not_change_results(tmp_path: Path) -> None:
    folder = str(tiny.folder(tmp_path))
    results = []
    for checkpointing in (False, True):
        base = load_base(ModelConfig(name=folder, gradient_checkpointing=checkpointing), LoraConfig())
        set_adapter(base, tiny.random_adapter(base))
        calls: list[int] = []
        base.causal.base_model.layers[0].mlp.register_forward_pre_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        with training(base, dropout=False, seed=0):
            logps, extra = with_mismatched(base, FORKS, MISMATCHED)
            forwards = len(calls)
            logps.sum().backward()
        assert len(calls) - forwards == checkpointing  # the layer runs again for its gradient
        results.append((logps.detach(), extra, base.flat.gradients[0].clone()))
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed)


def test_bfloat16_is_close_to_float32(tmp_path: Path) -> None:
    """bf16 keeps 8 bits: a few parts in a hundred after two layers and sums of twenty terms."""
    folder = str(tiny.folder(tmp_path))
    results = []
    for dtype in ("float32", "bfloat16"):
        base = load_base(ModelConfig(name=folder, dtype=dtype), LoraConfig())  # type: ignore[arg-type]
        assert base.packed
        assert all(p.dtype == torch.float32 for p in base.flat.parameters.values())
        set_adapter(base, tiny.random_adapter(base))
        results.append(measured(base))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0.05, atol=0.2)
    assert (results[0][1] - results[1][1]).norm() / results[0][1].norm() < 0.1
