"""Loading bases, fingerprints, loading and saving adapters, and errors."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from core.errors import ConfigError, TreeMismatch
from core.sections import LoraConfig, ModelConfig
from tasks.forward import setup
from tasks.forward.setup import load_base
from tasks.model.adapter import get_adapter, initial_adapter, save_adapter, set_adapter
from tasks.model.fingerprint import fingerprint
from tasks.pretrained.loading import load_tokenizer
from tests import tiny

pytestmark = pytest.mark.usefixtures("accord_home")


def test_a_base_is_loaded_once(folder: Path) -> None:
    before = setup.loads()
    first = load_base(ModelConfig(name=str(folder)), LoraConfig(r=3))
    assert load_base(ModelConfig(name=str(folder)), LoraConfig(r=3)) is first
    assert setup.loads() == before + 1


def test_the_fingerprint_ignores_sharding_and_dtype_of_loading(folder: Path, tmp_path: Path) -> None:
    whole = fingerprint(folder, load_tokenizer(folder))
    sharded = tiny.folder(tmp_path / "shards", shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert fingerprint(sharded, load_tokenizer(sharded)) == whole
    for dtype in ("float32", "bfloat16"):
        assert load_base(ModelConfig(name=str(folder), dtype=dtype), LoraConfig()).fingerprint == whole  # type: ignore[arg-type]


def test_the_fingerprint_depends_on_weights_configuration_and_tokenizer(folder: Path, tmp_path: Path) -> None:
    fingerprints = {fingerprint(folder, load_tokenizer(folder))}
    other = tiny.folder(tmp_path / "seed", seed=1)
    fingerprints.add(fingerprint(other, load_tokenizer(other)))
    fingerprints.add(fingerprint(folder, tiny.tokenizer(chat=True)))
    changed = Path(shutil.copytree(folder, tmp_path / "config"))
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    fingerprints.add(fingerprint(changed, load_tokenizer(changed)))
    assert len(fingerprints) == 4
    (changed / "config.json").write_text(json.dumps({**config, "transformers_version": "9"}))
    assert fingerprint(changed, load_tokenizer(changed)) in fingerprints


def test_the_fingerprint_of_changed_weights_at_the_same_path_changes(tmp_path: Path) -> None:
    """The key of the cached digest includes size and modification time."""
    first = fingerprint(tiny.folder(tmp_path / "m"), tiny.tokenizer())
    assert fingerprint(tiny.folder(tmp_path / "m", seed=1), tiny.tokenizer()) != first
    assert fingerprint(tiny.folder(tmp_path / "m"), tiny.tokenizer()) == first


def test_a_loaded_adapter_is_read_back(folder: Path) -> None:
    base = load_base(ModelConfig(name=str(folder)), LoraConfig())
    tree = tiny.random_adapter(base)
    set_adapter(base, tree)
    got = get_adapter(base)
    assert all(torch.equal(got[name], tree[name]) for name in tree)
    set_adapter(base, initial_adapter(base, 0))
    assert not torch.equal(got[next(iter(tree))], get_adapter(base)[next(iter(tree))])  # a copy, not a view


def test_another_layout_is_refused(folder: Path) -> None:
    base = load_base(ModelConfig(name=str(folder)), LoraConfig())
    tree = tiny.random_adapter(base)
    with pytest.raises(TreeMismatch, match="names differ"):
        set_adapter(base, dict(list(tree.items())[1:]))
    with pytest.raises(TreeMismatch, match="shape"):
        set_adapter(base, {name: tensor[:1] for name, tensor in tree.items()})


def test_the_initial_adapter_is_that_of_lora_and_depends_on_seed_and_name(folder: Path) -> None:
    """A is spread within 1/sqrt(inputs) and B is zero."""
    base = load_base(ModelConfig(name=str(folder)), LoraConfig(target_modules="all-linear"))
    tree = initial_adapter(base, 5)
    a = torch.cat([t.flatten() * t.shape[1] ** 0.5 for name, t in tree.items() if ".lora_A." in name])
    assert a.abs().max() <= 1.0
    assert a.std() == pytest.approx(3**-0.5, rel=0.05)  # of a uniform on [-1, 1]
    assert not any(t.any() for name, t in tree.items() if ".lora_B." in name)
    again, other = initial_adapter(base, 5), initial_adapter(base, 6)
    assert all(torch.equal(tree[name], again[name]) for name in tree)
    assert not any(torch.equal(tree[name], other[name]) for name in tree if ".lora_A." in name)


@pytest.mark.parametrize(
    ("targets", "architecture", "count"),
    [
        ("auto", "llama", 2),
        ("auto", "gpt2", 1),
        ("all-linear", "llama", 7),
        ("q_proj, down_proj", "llama", 2),
    ],
)
def test_targets(targets: str, architecture: str, count: int, tmp_path: Path) -> None:
    """Modules adapted in each of the two layers; each has an A and a B."""
    name = str(tiny.folder(tmp_path, architecture))
    base = load_base(ModelConfig(name=name), LoraConfig(target_modules=targets))
    assert len(base.flat.parameters) == 2 * 2 * count


def test_peft_loads_a_saved_adapter(folder: Path, tmp_path: Path) -> None:
    base = load_base(ModelConfig(name=str(folder)), LoraConfig(r=2, alpha=6))
    tree = tiny.random_adapter(base)
    save_adapter(base, tree, tmp_path / "adapter", base_name=str(folder))
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    ids = torch.tensor([[1, 5, 9, 30]])
    set_adapter(base, tree)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, base.model(ids).logits)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == folder.name
    assert (config["r"], config["lora_alpha"]) == (2, 6)
    assert config["target_modules"] == sorted(config["target_modules"]), "the same bytes from every process"


def test_a_tokenizer_needs_an_end_but_no_padding(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no eos_token"):
        load_base(ModelConfig(name=str(tiny.folder(tmp_path / "endless", eos=False))), LoraConfig())
    tokenizer = load_tokenizer(tiny.folder(tmp_path / "unpadded"))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "/nowhere/at/all"}, "no such folder"),
        ({"device": "tpu"}, "model.device must be"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_an_error_of_one_line(
    settings: dict, words: str, folder: Path
) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        load_base(ModelConfig(**{"name": str(folder), **settings}), LoraConfig())
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
@pytest.mark.parametrize("settings", [{"device": "cuda"}, {"device": "balanced"}])
def test_settings_that_need_cuda_are_refused_without_it(settings: dict, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"torch sees no(ne| CUDA device) here"):
        load_base(ModelConfig(name=str(folder), **settings), LoraConfig())


def test_unknown_targets_are_refused(folder: Path) -> None:
    for targets in ("nothing_proj", "embed_tokens"):
        with pytest.raises(ConfigError, match=r"lora\.target-modules"):
            load_base(ModelConfig(name=str(folder)), LoraConfig(target_modules=targets))
