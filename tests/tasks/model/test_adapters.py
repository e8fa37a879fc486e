"""The modules that LoRA adapts in various architectures, and loading of saved adapters by peft."""

import json
import logging
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from client_app import personal_model
from core.config import parse
from core.errors import ConfigError, TreeMismatch
from core.factors import MERGED, b_of, cut, is_a, modules
from core.sections import LoraConfig, ModelConfig, TrainConfig
from core.tree import Tree
from core.types import Client, Update
from strategies.aggregation.fold import Merged
from tasks.base import Example
from tasks.dpo import DPO
from tasks.forward.setup import load_base
from tasks.model.adapter import get_adapter, initial_adapter, save_adapter, set_adapter
from tasks.model.base import Base
from tasks.tokens.cache import Cache
from tasks.training import loop, trl_engine
from tests import tiny

R, ALPHA = 4, 6
SHARED = {
    "vocab_size": tiny.VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
FEW = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
TEXT = {**SHARED, "head_dim": 8, "pad_token_id": 0}
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {**FEW, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {**FEW, "head_dim": 8},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v2": {**LATENT, **ROUTED, "n_shared_experts": 1},
    "deepseek_v3": {**LATENT, **ROUTED, "n_group": 1, "topk_group": 1},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "jamba": {
        "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4,
    },
    "llama4_text": {"num_local_experts": 4, "intermediate_size_mlp": 64, "head_dim": 8, "interleave_moe_layer_step": 1},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_layer_start_index": 1},
    "jetmoe": {"num_local_experts": 4, "kv_channels": 8, "num_key_value_heads": 4},
    "glm4_moe": {**ROUTED, "head_dim": 8},
    "afmoe": {**FEW, "num_dense_layers": 1, "head_dim": 8},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2, "head_dim": 8},
    "llama": {"tie_word_embeddings": True},
    "gpt2": {},
    "gemma3": {"text_config": TEXT, "vision_config": VISION, "mm_tokens_per_image": 4, "image_token_index": 90},
    "fuyu": {"hidden_size": 32, "text_config": {**TEXT, "model_type": "persimmon"}, "patch_size": 8, "image_size": 16},
    "git": {"vision_config": VISION},
    "phi4_multimodal": {
        "vision_config": {**VISION, "crop_size": 16},
        "audio_config": {"hidden_size": 32, "intermediate_size": 32, "num_blocks": 1, "num_attention_heads": 4},
    },
}  # fmt: skip
COMPOSITE = ("gemma3", "fuyu")
MEDIA = (*COMPOSITE, "git", "phi4_multimodal")
EXPERTS = tuple(list(CONFIGS)[:16])
IDS = torch.tensor([[1, 5, 9, 30, 7, 11]])
EXAMPLES = [Example((1, 5, 9 + i), ((30 + i, 4, 2), (7, 2))) for i in range(4)]


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCORD_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory):
    """Returns the folder of an architecture by name, created on first use."""
    root = tmp_path_factory.mktemp("models")

    @cache
    def made(name: str) -> Path:
        if name == "gpt2":
            return tiny.folder(root / name, name)
        config = CONFIG_MAPPING[name](**({} if name in COMPOSITE else SHARED) | CONFIGS[name])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
            for parameter in model.parameters():
                parameter.data.normal_(0.0, 0.15 if parameter.dim() > 1 else 0.5).add_(
                    float(parameter.dim() == 1)
                )
        model.save_pretrained(root / name)
        tiny.tokenizer().save_pretrained(root / name)
        return root / name

    return made


def loaded(folder: Path, targets: str = "all-linear", **keys: Any) -> Base:
    lora = LoraConfig(**{"r": R, "alpha": ALPHA, "target_modules": targets, **keys})
    return load_base.__wrapped__(ModelConfig(name=str(folder)), lora)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def in_peft(folder: Path, adapter: Path) -> Tensor:
    """The logits of the folder's model with a saved adapter; a warning of an unmatched tensor is an error."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(adapter keys|unexpected keys|not match any).*")
        return logits(PeftModel.from_pretrained(plain, str(adapter)))


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
