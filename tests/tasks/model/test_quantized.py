"""8- and 4-bit bases on the CPU: close to the unquantised one, with correct gradients, and deterministic."""

from dataclasses import replace

import pytest
import torch

from core.sections import LoraConfig, ModelConfig
from tasks.dpo import DPO
from tasks.forward.logprobs import completion_logps
from tasks.forward.setup import load_base
from tasks.model.adapter import initial_adapter, set_adapter
from tasks.model.base import Base
from tests import tiny
from tests.tasks.training.test_loop import CFG, PAIRS, same, trained

FORKS = [(e.prompt, e.completions) for e in PAIRS]
LORA = LoraConfig(r=4)


def loaded(quantization: str) -> Base:
    """One of its own: weights of it may be changed."""
    return load_base.__wrapped__(ModelConfig(name="toy", quantization=quantization), LORA)


def scored(base: Base) -> torch.Tensor:
    with torch.no_grad():
        return completion_logps(base, FORKS)


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_it_is_small_close_to_the_unquantised_base_and_deterministic(quantization):
    whole, base = loaded("none"), loaded(quantization)
    assert base.numerics == f"float32-{quantization}"
    assert base.fingerprint == whole.fingerprint, "of the files, whatever they are loaded as"
    kinds = {p.dtype for n, p in base.model.named_parameters() if "_proj.base_layer" in n}
    assert kinds <= {torch.int8, torch.uint8}
    assert {t.dtype for t in base.adapter.values()} == {torch.float32}
    for one in (whole, base):
        set_adapter(one, initial_adapter(one, 0))
    want, got = scored(whole), scored(base)
    assert 0 < (got - want).abs().mean() < 0.1 * want.abs().mean()

    cfg = replace(CFG, local_steps=12)
    first, report = trained(base, DPO(beta=0.1), PAIRS, cfg)
    again, _ = trained(base, DPO(beta=0.1), PAIRS, cfg)
    assert same(first, again)
    assert not same(first, trained(whole, DPO(beta=0.1), PAIRS, cfg)[0])
    assert report.metrics["loss"] < 0.69


@pytest.mark.parametrize(("quantization", "most"), [("8bit", 0.03), ("4bit", 1e-4)])
def test_gradients_equal_those_of_the_dequantised_weights(quantization, most):
    """Those are read off layer by layer and put into a whole model. 8 bits round what comes into a layer as well."""
    whole, base = loaded("none"), loaded(quantization)
    scored(base)  # a pass without gradients must not change what comes after
    for name, layer in base.model.named_modules():
        if name.endswith(".base_layer"):
            with torch.no_grad():
                columns = layer(torch.eye(layer.in_features)[None])[0]
            whole.model.get_submodule(name).weight.data.copy_(columns.T)
    gradients = []
    for one in (whole, base):
        set_adapter(one, tiny.random_adapter(one))
        completion_logps(one, FORKS).square().sum().backward()
        gradients.append({n: p.grad for n, p in one.adapter.items()})
    for name, want in gradients[0].items():
        assert (gradients[1][name] - want).norm() < most * want.norm(), name
