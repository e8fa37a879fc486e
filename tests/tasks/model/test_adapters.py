"""Adapters in various architectures: their ranks, their files, and loading of saved ones by peft."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from client_app import personal_model
from core.config import parse
from core.errors import ConfigError
from core.factors import MERGED, b_of, cut, modules
from core.sections import ModelConfig, TrainConfig
from core.tree import Tree
from core.types import Client, Update
from strategies.aggregation.fold import Merged
from tasks.dpo import DPO
from tasks.model.adapter import get_adapter, save_adapter, set_adapter
from tasks.training import trl_engine
from tests import tiny
from tests.tasks.model.architectures import ALPHA, CONFIGS, EXAMPLES, R, in_peft, loaded, logits

pytestmark = pytest.mark.usefixtures("accord_home")


def frozen(tree: Mapping[str, Tensor]) -> Tree:
    """Factors of rank 3 for all modules but one."""
    rng, out = torch.Generator().manual_seed(1), {}
    for name, (b, a) in list(modules(tree).items())[1:]:
        out[name] = 0.2 * torch.randn(3, a.shape[1], generator=rng)
        out[b_of(name)] = 0.2 * torch.randn(len(b), 3, generator=rng)
    return out


@pytest.mark.parametrize("name", CONFIGS)
def test_peft_loads_the_adapter_of_a_run(name: str, folders, tmp_path: Path) -> None:
    """The adapter alone, with merged factors, and at a smaller rank gives the logits of the base."""
    folder, base = folders(name), loaded(folders(name))
    tree = tiny.random_adapter(base)
    pure, small, merged = logits(base.model), dict(cut(tree, 2)), frozen(tree)
    for case, (adapter, factors, rank) in enumerate([(tree, None, R), (tree, merged, R), (small, None, 2)]):
        set_adapter(base, adapter, factors)
        want = logits(base.causal)
        assert (want - pure).abs().max() > 0.1
        assert {layer.scaling["default"] for layer in base.merged.layers.values()} == {ALPHA / rank}
        save_adapter(base, adapter, tmp_path / str(case), base_name=str(folder), merged=factors)
        torch.testing.assert_close(in_peft(folder, tmp_path / str(case)), want, rtol=1e-4, atol=1e-4)


def test_the_factors_of_a_conv1d_are_saved_in_the_usual_orientation(folders, tmp_path: Path) -> None:
    """GPT-2's layers hold (inputs, outputs); A, B and merged products have the usual shapes."""
    base = loaded(folders("gpt2"))
    tree = tiny.random_adapter(base)
    for name, (b, a) in modules(tree).items():
        weight = base.merged.layers[name].base_layer.weight  # type: ignore[union-attr]
        assert (a.shape[1], len(b)) == weight.shape
    save_adapter(base, tree, tmp_path, base_name="gpt2")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["fan_in_fan_out"] is True


@pytest.mark.parametrize("method", ["separate", "flora", "flexlora", "fedex"])
def test_a_rank_above_a_layers_full_rank_is_correct_with_a_warning(
    method: str, folders, tmp_path, caplog
) -> None:
    """Rank 24 in layers of 16 outputs, through a round of two clients: the server's model is also loaded by peft."""
    keys = {"lora.aggregation": method, "lora.r": 24, "lora.alpha": ALPHA}
    keys |= {"lora.client-ranks": "24,20"} if method.startswith("fl") else {}
    chosen = parse(keys).build_strategy()
    with caplog.at_level(logging.WARNING):
        base = loaded(folders("llama"), r=24)
    assert any("lora.r = 24 is above the full rank of" in m and "k_proj (16)" in m for m in caplog.messages)
    state = chosen.init({"global": tiny.random_adapter(base)}, 7)
    orders, updates, fold = (
        chosen.plan_train(state, 1, [Client(0, 5), Client(1, 5)]),
        [],
        chosen.fold(state, 1, tmp_path),
    )
    for order in orders:
        rng = torch.Generator().manual_seed(order.client)
        delta = {n: 0.05 * torch.randn(t.shape, generator=rng) for n, t in order.trees["global"].items()}
        set_adapter(base, order.trees["global"], order.trees.get(MERGED))
        updates.append(Update(order.client, 5, "global", {"delta": delta}, {"norm/delta": 1.0}))
        fold.add(updates[-1])
    state, _ = chosen.merge_train(state, 1, Merged(tuple(updates), fold.result()))
    tree, merged = state.adapters["global"], state.memory.get(f"global.{MERGED}")
    set_adapter(base, tree, merged)
    save_adapter(base, tree, tmp_path, base_name="llama", merged=merged)
    torch.testing.assert_close(in_peft(folders("llama"), tmp_path), logits(base.causal), rtol=1e-4, atol=1e-4)


def test_the_saved_configuration_names_no_path(folders, tmp_path: Path) -> None:
    """A local folder has its name without the path; a hub id and the embedded model are unchanged."""
    base = loaded(folders("llama"))
    tree = get_adapter(base)
    for name, want in ((str(folders("llama")), "llama"), ("~/models/mine", "mine"), ("org/name", "org/name"),
                       ("toy", "toy")):  # fmt: skip
        save_adapter(base, tree, tmp_path, base_name=name)
        text = (tmp_path / "adapter_config.json").read_text()
        assert json.loads(text)["base_model_name_or_path"] == want
        assert str(folders("llama").parent) not in text


@pytest.mark.parametrize(("name", "targets"), [("deepseek_v3", "all-linear"), ("gemma3", "q_proj,v_proj"),
                                               ("mixtral", "q_proj,experts.down_proj")])  # fmt: skip
def test_the_targets_of_a_saved_adapter_are_read_back(
    name: str, targets: str, folders, tmp_path: Path
) -> None:
    folder, base = folders(name), loaded(folders(name), targets)
    tree = tiny.random_adapter(base)
    set_adapter(base, tree)
    want = logits(base.causal)
    config = parse({"model.name": str(folder), "lora.r": R, "lora.alpha": ALPHA, "task.name": "dpo"})
    personal_model.export(base, tree, None, tmp_path / "own", config, None)
    own = personal_model.load(ModelConfig(name=str(folder)), tmp_path / "own")
    torch.testing.assert_close(logits(own.generator.base.causal), want, rtol=1e-4, atol=1e-4)


def test_trl_is_refused_if_its_second_adapter_would_differ(folders) -> None:
    base = loaded(folders("deepseek_v3"))
    with pytest.raises(ConfigError, match=r"train\.engine = 'trl'.*layers\.0\.mlp\.gate_proj"):
        trl_engine.train(base, DPO(), EXAMPLES, TrainConfig(), seed=0)
