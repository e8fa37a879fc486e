"""The modules that LoRA adapts in various architectures."""

import json
import logging
from pathlib import Path

import pytest
import torch

from core.errors import ConfigError, TreeMismatch
from core.factors import is_a
from core.sections import TrainConfig
from tasks.dpo import DPO
from tasks.model.adapter import get_adapter, initial_adapter, save_adapter, set_adapter
from tasks.tokens.cache import Cache
from tasks.training import loop
from tests import tiny
from tests.tasks.model.architectures import ALPHA, EXAMPLES, EXPERTS, MEDIA, R, in_peft, loaded, logits

pytestmark = pytest.mark.usefixtures("accord_home")


@pytest.mark.parametrize("name", EXPERTS)
def test_routers_and_fused_experts_are_not_adapted_by_default_with_a_warning(
    name: str, folders, caplog
) -> None:
    with caplog.at_level(logging.WARNING):
        tree = initial_adapter(loaded(folders(name)), 0)
    places = {part for n in tree for part in n.split(".")}
    assert not places & {"gate", "router", "shared_expert_gate", "wg", "experts"}
    assert {len(t) for n, t in tree.items() if is_a(n)} == {R}
    assert any(
        "fused experts are not adapted; lora.target-modules = 'all-linear," in m for m in caplog.messages
    )


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("qwen2_moe", "shared_expert.gate_proj"),
        ("deepseek_v3", "shared_experts.down_proj"),
        ("deepseek_v3", "layers.0.mlp.up_proj"),
        ("afmoe", "self_attn.gate_proj"),
    ],
)
def test_layers_named_like_experts_are_adapted(name: str, part: str, folders, tmp_path: Path) -> None:
    """peft takes these names for experts of transformers 4 and would omit the layers, by default or if named."""
    assert any(f"{part}.lora_A" in n for n in loaded(folders(name)).adapter)
    base = loaded(folders(name), part)
    set_adapter(base, tree := tiny.random_adapter(base))
    assert all(f"{part}.lora_" in n for n in tree)
    save_adapter(base, tree, tmp_path, base_name=name)
    torch.testing.assert_close(in_peft(folders(name), tmp_path), logits(base.causal), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("mixtral", "q_proj,experts.gate_up_proj,experts.down_proj"),
        ("qwen3_moe", "down_proj"),
        ("gpt_oss", "all-linear,experts.gate_up_proj,experts.down_proj"),
        ("deepseek_v3", "all-linear,experts.gate_up_proj,experts.down_proj"),
        ("llama4_text", "gate_up_proj,experts.down_proj"),
        ("jetmoe", "kv_proj,mlp.input_linear.weight"),
    ],
)
def test_named_experts_are_adapted_at_the_same_rank(name: str, targets: str, folders, tmp_path) -> None:
    """Their A has r rows for each expert; r, alpha and the scale stay those of every other module."""
    folder, base = folders(name), loaded(folders(name), targets)
    tree = tiny.random_adapter(base)
    assert {len(t) for n, t in tree.items() if is_a(n)} - {R} == {4 * R}
    pure = logits(base.model)
    set_adapter(base, tree)
    assert {layer.scaling["default"] for layer in base.merged.layers.values()} == {ALPHA / R}
    want = logits(base.causal)
    assert (want - pure).abs().max() > 0.05
    save_adapter(base, tree, tmp_path / "adapter", base_name=str(folder))
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (R, ALPHA)
    torch.testing.assert_close(in_peft(folder, tmp_path / "adapter"), want, rtol=1e-4, atol=1e-4)
    cfg = TrainConfig(local_steps=1, per_device_batch_size=4)
    loop.train(base, DPO(), EXAMPLES, cfg, seed=0, cache=Cache(None))
    assert not any(t.equal(tree[n]) for n, t in get_adapter(base).items())
    with pytest.raises(TreeMismatch, match=r"rank 2 of 4 .*fused experts"):
        set_adapter(
            base, {n: t[: len(t) // 2] if is_a(n) else t[:, : t.shape[1] // 2] for n, t in tree.items()}
        )


@pytest.mark.parametrize(
    "keys",
    [{"aggregation": "fedex"}, {"aggregation": "flora"}, {"aggregation": "flexlora"}, {"dropout": 0.1}],
)
def test_settings_that_experts_do_not_support_are_refused(keys: dict, folders) -> None:
    with pytest.raises(ConfigError, match=r"lora\.\w+ = .* fused experts in lora\.target-modules") as caught:
        loaded(folders("mixtral"), "q_proj,experts.down_proj", **keys)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", MEDIA)
@pytest.mark.parametrize("targets", ["all-linear", "auto"])
def test_only_the_language_model_is_adapted(name: str, targets: str, folders) -> None:
    """Each adapted module takes part in a pass over text, and no tensor of an image or audio part is adapted."""
    base = loaded(folders(name), targets)
    assert not [
        n for n in base.adapter if any(w in n for w in ("vision", "visual", "image", "audio", "projector"))
    ]
    called = set()
    layers = base.merged.layers.items()
    hooks = [layer.register_forward_hook(lambda *_, name=name: called.add(name)) for name, layer in layers]
    logits(base.causal)
    for hook in hooks:
        hook.remove()
    assert called == base.merged.layers.keys()


def test_a_name_in_both_parts_selects_the_language_models(folders) -> None:
    """Gemma 3's image encoder has q_proj and v_proj, too; a name that only the encoder has is refused."""
    names = loaded(folders("gemma3"), "q_proj,v_proj").adapter
    assert len(names) == 2 * 2 * 2
    assert all(".language_model." in n for n in names)
    with pytest.raises(ConfigError, match="'fc1' is only outside the language model"):
        loaded(folders("gemma3"), "q_proj,fc1")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("q_proj,nothing_proj", "LlamaForCausalLM has no module 'nothing_proj'"),
        ("q_porj", "did you mean 'q_proj'"),
        ("q_porj", "Available: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"),
        ("q_proj,", "'q_proj,' has an empty name"),
        ("Q_PROJ", "has no module 'Q_PROJ'"),
        ("embed_tokens", r"'embed_tokens' \(Embedding\) is not a linear layer"),
        ("self_attn", r"'self_attn' \(LlamaAttention\) is not a linear layer"),
        ("q_proj,lm_head", "'lm_head' is the vocabulary head.*tie_word_embeddings"),
    ],
)
def test_a_target_without_a_match_is_refused(targets: str, message: str, folders) -> None:
    """peft silently omits a name without a match if another name has one."""
    with pytest.raises(ConfigError, match=message) as caught:
        loaded(folders("llama"), targets)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("lora.target-modules")


def test_a_router_that_is_a_linear_layer_can_be_named(folders) -> None:
    assert len(loaded(folders("afmoe"), "router.gate").adapter) == 2
    for name in ("llama4_text", "phimoe"):
        with pytest.raises(ConfigError, match="is a router"):
            loaded(folders(name), "q_proj,router")


def test_a_tied_head_is_not_adapted_and_an_untied_one_runs_padded(folders, tmp_path: Path) -> None:
    assert not [n for n in loaded(folders("llama")).adapter if "lm_head" in n or "embed" in n]
    folder = tiny.folder(tmp_path / "untied")
    base = loaded(folder, "q_proj,lm_head")
    assert not base.packed
    set_adapter(base, tree := tiny.random_adapter(base))
    save_adapter(base, tree, tmp_path / "adapter", base_name="untied")
    torch.testing.assert_close(in_peft(folder, tmp_path / "adapter"), logits(base.causal))
