"""Merged factors are part of the policy, not of the reference, and are removed without a trace."""

import gc
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from core.errors import TreeMismatch
from core.factors import b_of, cut, modules
from core.sections import LoraConfig, ModelConfig, TrainConfig
from core.tree import Tree
from tasks.base import Example
from tasks.dpo import DPO
from tasks.forward.logprobs import completion_logps
from tasks.forward.modes import reference
from tasks.forward.reference import reference_logps
from tasks.forward.setup import load_base
from tasks.model.adapter import get_adapter, initial_adapter, is_untouched, save_adapter, set_adapter
from tasks.model.base import Base
from tasks.tokens.cache import Cache
from tasks.training import loop, trl_engine
from tests import tiny

FORKS = [((1, 5, 9), ((30, 4, 2), (7, 2))), ((1, 8), ((11, 12, 13, 2),))]
EXAMPLES = [Example((1, 5, 9 + i), ((30 + i, 4, 2), (7, 2))) for i in range(6)]
CONFIG = TrainConfig(local_steps=2, per_device_batch_size=3)
pytestmark = pytest.mark.usefixtures("accord_home")


@pytest.fixture(params=["llama", "gemma2"])  # packed, padded
def base(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Base:
    name = folder if request.param == "llama" else tiny.folder(tmp_path / "gemma2", "gemma2")
    return load_base(ModelConfig(name=str(name)), LoraConfig(r=4))


def frozen(base: Base, rank: int, seed: int = 1) -> Tree:
    """Factors for all layers but one."""
    rng, out = torch.Generator().manual_seed(seed), {}
    for name, (b, a) in list(modules(initial_adapter(base, 0)).items())[1:]:
        out[name] = 0.2 * torch.randn(rank, a.shape[1], generator=rng)
        out[b_of(name)] = 0.2 * torch.randn(len(b), rank, generator=rng)
    return out


def scores(base: Base) -> torch.Tensor:
    with torch.no_grad():
        return completion_logps(base, FORKS)


def with_weights_moved(base: Base, merged: Tree) -> torch.Tensor:
    """The log-probabilities with the product added to the weights."""
    weights = {}
    for name, (left, right) in modules(merged).items():
        weight = base.merged.layers[name].base_layer.weight  # type: ignore[union-attr]
        weights[name] = weight.data.clone()
        weight.data += left @ right
    out = scores(base)
    for name, weight in weights.items():
        base.merged.layers[name].base_layer.weight.data = weight  # type: ignore[union-attr]
    return out


def test_merged_factors_act_in_the_policy_only(base: Base, tmp_path: Path) -> None:
    set_adapter(base, initial_adapter(base, 0))
    pure, x, merged = scores(base), tiny.random_adapter(base), frozen(base, 5)
    known = reference_logps(base, EXAMPLES, Cache(tmp_path))
    set_adapter(base, x)
    want, without = with_weights_moved(base, merged), scores(base)
    set_adapter(base, x, merged)
    torch.testing.assert_close(scores(base), want, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(without, want, atol=1e-2)
    with reference(base):
        assert scores(base).equal(pure)
    assert reference_logps(base, EXAMPLES, Cache(None)) == known, "cached numbers of the base stay true"


def test_removed_factors_leave_no_trace(base: Base) -> None:
    """With ranks that change from round to round, no tensor, hook or module remains."""
    x = tiny.random_adapter(base)
    set_adapter(base, x)
    plain, model = scores(base), base.model
    set_adapter(base, x, frozen(base, 3))
    gc.collect()
    before = sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
    for rank in (5, 2, 9, 3):
        set_adapter(base, x, frozen(base, rank))
        scores(base)
    gc.collect()
    assert sum(isinstance(o, torch.Tensor) for o in gc.get_objects()) <= before
    assert base.model is model
    set_adapter(base, x)
    assert scores(base).equal(plain)
    assert not any(layer._forward_hooks for layer in base.merged.layers.values())
    with pytest.raises(TreeMismatch, match=r"merged: no adapted layer has 'nowhere\.lora_A"):
        set_adapter(
            base, x, {"nowhere.lora_A.weight": torch.ones(1, 3), "nowhere.lora_B.weight": torch.ones(3, 1)}
        )


def test_with_merged_factors_the_policy_is_not_the_reference(base: Base) -> None:
    """B = 0 does not imply it: flora starts every round with B = 0."""
    x = initial_adapter(base, 0)
    set_adapter(base, x)
    assert is_untouched(base)
    set_adapter(base, x, frozen(base, 2))
    assert not is_untouched(base)


@pytest.mark.parametrize("engine", [loop, trl_engine])
def test_training_uses_merged_factors_and_does_not_change_them(folder: Path, engine) -> None:
    """Both engines start from the loss of the whole policy against the frozen base, and train the adapter only."""
    base = load_base(ModelConfig(name=str(folder)), LoraConfig(r=4))
    x, merged = initial_adapter(base, 0), frozen(base, 3)
    before = {n: t.clone() for n, t in merged.items()}
    losses = []
    for factors in ({}, merged):
        set_adapter(base, x, factors)
        with torch.no_grad():
            policy = completion_logps(base, [(e.prompt, e.completions) for e in EXAMPLES[:3]]).view(-1, 2)
        with reference(base):
            ref = completion_logps(base, [(e.prompt, e.completions) for e in EXAMPLES[:3]]).view(-1, 2)
        margin = (policy - ref)[:, 0] - (policy - ref)[:, 1]
        cfg = TrainConfig(local_steps=1, per_device_batch_size=3)
        report = engine.train(base, DPO(beta=0.1), EXAMPLES[:3], cfg, seed=0, cache=Cache(None))
        losses.append(report.metrics["loss"])
        assert losses[-1] == pytest.approx(
            float(-torch.nn.functional.logsigmoid(0.1 * margin).mean()), abs=2e-5
        )
        assert any(not t.equal(x[n]) for n, t in get_adapter(base).items())
    assert abs(losses[0] - losses[1]) > 1e-3
    assert all(t.equal(before[n]) for n, t in merged.items())


def test_the_export_is_one_lora_that_peft_loads(base: Base, tmp_path: Path) -> None:
    x, merged, ids = tiny.random_adapter(base), frozen(base, 5), torch.tensor([[1, 5, 9, 30]])
    name = base.causal.config._name_or_path
    save_adapter(base, x, tmp_path / "adapter", base_name=name, merged=merged)
    plain = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    config = loaded.peft_config["default"]
    assert (config.r, config.lora_alpha) == (9, 9)
    set_adapter(base, x, merged)
    with torch.no_grad():
        got, want = loaded(ids).logits, base.model(ids).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", [loop, trl_engine])
def test_a_smaller_rank_in_a_larger_base_trains_as_that_rank(folder: Path, engine) -> None:
    """It equals a base loaded at rank 2, including the scale alpha / 2; entries above rank 2 stay zero."""
    large = load_base(ModelConfig(name=str(folder)), LoraConfig(r=4, alpha=6))
    small = load_base(ModelConfig(name=str(folder)), LoraConfig(r=2, alpha=6))
    x, ends = tiny.random_adapter(small), []
    for base in (small, large):
        set_adapter(base, tiny.random_adapter(base, seed=5))
        set_adapter(base, x)
        engine.train(base, DPO(beta=0.1), EXAMPLES, CONFIG, seed=0, cache=Cache(None))
        ends.append(get_adapter(base))
    for n, t in ends[0].items():
        torch.testing.assert_close(ends[1][n], t, rtol=1e-4, atol=1e-5)
        assert not t.equal(x[n])
    inside = cut(large.flat.parameters, 2)
    for n, p in large.flat.parameters.items():
        assert p.detach().square().sum() == pytest.approx(float(inside[n].detach().square().sum()))
    whole = initial_adapter(large, 0)
    set_adapter(large, whole)
    assert all(t.equal(whole[n]) for n, t in get_adapter(large).items())
    assert next(iter(large.merged.layers.values())).scaling == {"default": 1.5}
