"""Folders that are no whole model, each refused in one line; and what of a folder is loaded and covered."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from core.errors import ConfigError
from core.sections import LoraConfig, ModelConfig
from tasks.forward.setup import is_pickled, load_base
from tasks.model.fingerprint import fingerprint
from tasks.pretrained.convert import weights_of
from tasks.pretrained.loading import check_length, embedding_rows, learned_positions, load_tokenizer
from tasks.pretrained.snapshot import fetch
from tasks.scoring.generate import greedy
from tasks.tokens.encode import Encoder
from tests import tiny

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665a5ea423c2713d436b5ee50593a9640e0018c1550b5a0002f74190d6caea8\nsize 12\n"  # noqa: E501 - as it is
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
IDS = torch.tensor([[1, 5, 9, 30]])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("whole") / "tiny")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("sharded") / "tiny", shard_size="50KB")


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCORD_HOME", str(tmp_path / "home"))


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture
def shards(sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "shards"))


def refusal(name: object, **settings: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_base(ModelConfig(name=str(name), **settings), LoraConfig())  # type: ignore[arg-type]
    line = str(error.value)
    assert "\n" not in line
    return line


def mark(folder: Path) -> str:
    return fingerprint(folder, load_tokenizer(folder))


def logits(folder: Path) -> torch.Tensor:
    base = load_base(ModelConfig(name=str(folder)), LoraConfig())
    with torch.no_grad(), base.model.disable_adapter():
        return base.model(IDS).logits


def without(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder


def changed(folder: Path, edit: Callable[[dict], None], file: str = WEIGHTS) -> Path:
    tensors = load_file(folder / file)
    edit(tensors)
    save_file(tensors, folder / file, metadata={"format": "pt"})
    return folder


def written(folder: Path, **files: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


def test_a_folder_without_config_is_refused_with_what_it_holds(whole: Path, tmp_path: Path) -> None:
    adapter = written(tmp_path / "adapter", adapter_config__json=b'{"base_model_name_or_path": "org/base"}')
    assert "adapter of 'org/base'" in refusal(adapter)
    assert "GGUF" in refusal(written(tmp_path / "gguf", tiny__gguf=b"GGUF"))
    assert str(whole) in refusal(whole.parent)
    assert str(whole) in refusal(whole.parent.parent), "two levels down, like the snapshots of a cache"
    assert "is empty" in refusal(written(tmp_path / "empty"))
    assert "notes.txt" in refusal(written(tmp_path / "other", notes__txt=b"-"))
    assert "maker's own format" in refusal(written(tmp_path / "meta", params__json=b"{}"))
    assert "is a file" in refusal(whole / WEIGHTS)
    assert "GGUF" in refusal(tmp_path / "gguf" / "tiny.gguf")
    for name in ("", "./nothing", "~/nothing-here", "/no/such/folder", "a/b/c"):
        assert "no such folder" in refusal(name)
    assert "model.revision" in refusal(whole, revision="v2")


def test_the_home_folder_is_expanded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    assert fetch(ModelConfig(name="~/model")) == model


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (LFS, "git lfs pull"),
        (b"\xff" * 400, "damaged or cut short"),
        (b"short", "damaged or cut short"),
        (None, "damaged or cut short"),  # the last bytes are missing
    ],
)
def test_an_incomplete_file_is_named(model: Path, shards: Path, content: bytes | None, expected: str) -> None:
    for folder, name in ((model, WEIGHTS), (shards, sorted(p.name for p in shards.glob("*.safetensors"))[1])):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-7] if content is None else content)
        line = refusal(folder)
        assert expected in line
        assert str(folder / name) in line


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.json", LFS, "git lfs pull"),
        ("config.json", b'{"half": ', "is not JSON"),
        ("config.json", b"[]", "must hold a JSON object"),
        ("tokenizer.json", LFS, "git lfs pull"),
        ("tokenizer.json", b"", "is empty"),
        ("tokenizer.json", b'{"half": ', "no usable tokenizer"),
        ("tokenizer.json", b'{"model": 3}', "no usable tokenizer"),
    ],
)
def test_small_files_are_checked_too(model: Path, name: str, content: bytes, expected: str) -> None:
    (model / name).write_bytes(content)
    line = refusal(model)
    assert expected in line
    assert str(model) in line


def test_an_index_must_match_its_files(shards: Path) -> None:
    index = json.loads((shards / INDEX).read_text())
    first, second = sorted(set(index["weight_map"].values()))[:2]
    (shards / second).rename(shards / "away")
    assert f"lacks {second}" in refusal(shards)
    (shards / "away").rename(shards / second)
    name = next(n for n, file in index["weight_map"].items() if file == first)
    for places, expected in (
        ({**index["weight_map"], name: second}, "lacks 1 tensor"),
        ({**index["weight_map"], name: "../other.safetensors"}, "'../other.safetensors'"),
        ({}, "no weight_map"),
    ):
        (shards / INDEX).write_text(json.dumps({"weight_map": places}))
        assert expected in refusal(shards)


def test_tensors_that_are_missing_or_of_another_shape_are_refused(model: Path, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    other = Path(shutil.copytree(model, tmp_path / "other"))
    assert f"lacks 1 tensor ({name})" in refusal(changed(model, lambda t: t.pop(name)))
    line = refusal(changed(other, lambda t: t.update({name: torch.zeros(3, 3)})))
    assert name in line
    assert "(3, 3), expected (32, 32)" in line


def test_tied_tensors_are_not_missing(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "gpt2", "gpt2")
    assert "lm_head.weight" not in load_file(folder / WEIGHTS)
    load_base(ModelConfig(name=str(folder)), LoraConfig())


def test_a_vocabulary_larger_than_the_embedding_is_refused(model: Path, tmp_path: Path) -> None:
    special = Path(shutil.copytree(model, tmp_path / "special"))
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(model)
    line = refusal(model)
    assert "'<extra>'" in line
    assert f"the {tiny.VOCABULARY} rows" in line
    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.save_pretrained(special)
    assert "<|im_start|>" in refusal(special)


def test_a_token_for_images_may_be_beyond_the_embedding_of_a_text_model(model: Path) -> None:
    """As in gemma-3-1b-it; a row that spells the token out is refused."""
    inner = tiny.tokenizer().backend_tokenizer
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, extra_special_tokens={"image_token": "<image>"}, **names
    )
    tokenizer.save_pretrained(model)
    base = load_base(ModelConfig(name=str(model)), LoraConfig())
    encoder = Encoder(base.tokenizer, "none", 64, on_bad_row="skip", vocabulary=embedding_rows(base.causal))
    assert encoder.example("a", ["b", "c"])
    assert encoder.example("a", ["b <image>", "c"]) is None
    assert len(encoder.skipped) == 1


def test_a_tokenizer_without_a_vocabulary_is_refused(model: Path) -> None:
    """transformers creates an empty one from the class name alone."""
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    assert "has no vocabulary" in refusal(model)


@pytest.mark.parametrize(
    ("architecture", "limit"), [("gpt2", 512), ("llama", None), ("opt", 64), ("gpt_neo", 64)]
)
def test_rows_longer_than_the_learned_positions_are_refused(architecture: str, limit: int | None) -> None:
    small = {"vocab_size": 20, "max_position_embeddings": 64, "hidden_size": 8, "num_attention_heads": 2}
    options = {
        "opt": {"ffn_dim": 8, "num_hidden_layers": 1, "word_embed_proj_dim": 8},
        "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 2},
    }
    config = (
        AutoConfig.for_model(architecture, **small, **options[architecture])
        if architecture in options
        else tiny.config(architecture)
    )
    causal = AutoModelForCausalLM.from_config(config)
    assert learned_positions(causal) == limit
    check_length(causal, limit or 10**6, "m")
    if limit:
        with pytest.raises(ConfigError, match=f"at most {limit}"):
            check_length(causal, limit + 1, "m")


def test_an_answer_ends_at_the_last_position(tmp_path: Path) -> None:
    """A prompt of 512 tokens leaves room for one more, which is not read again."""
    base = load_base(ModelConfig(name=str(tiny.folder(tmp_path / "gpt2", "gpt2"))), LoraConfig())
    for length in (500, 512):
        assert len(greedy(base, [5] * length)) <= 513 - length


def test_code_in_a_model_folder_is_never_run(model: Path, tmp_path: Path) -> None:
    page = json.loads((model / "config.json").read_text())
    trap = tmp_path / "ran"
    (model / "modeling_x.py").write_text(f"open({str(trap)!r}, 'w')")
    auto = {"AutoConfig": "modeling_x.C", "AutoModelForCausalLM": "modeling_x.M"}
    expected = logits(model)
    (model / "config.json").write_text(json.dumps({**page, "auto_map": auto}))
    load_base.cache_clear()
    assert logits(model).equal(expected), "a native class is used"
    (model / "config.json").write_text(json.dumps({**page, "auto_map": auto, "model_type": "own"}))
    load_base.cache_clear()
    assert "auto_map" in refusal(model)
    (model / "config.json").write_text(json.dumps({**page, "model_type": "own"}))
    assert "does not know" in refusal(model)
    assert not trap.exists()


def test_the_fingerprint_covers_exactly_the_loaded_files(model: Path, shards: Path) -> None:
    before = mark(model)
    assert mark(shards) == before
    stray = {"lm_head.weight": torch.zeros(3)}
    for folder in (model, shards):
        for name in (
            "consolidated.safetensors",
            "model-00009-of-00009.safetensors",
            "adapter_model.safetensors",
        ):
            save_file(stray, folder / name)
        (folder / "pytorch_model.bin").write_bytes(b"decoy")
        assert mark(folder) == before
        assert [file.name for file in weights_of(folder).files] == sorted(
            {WEIGHTS}
            if folder == model
            else {*json.loads((folder / INDEX).read_text())["weight_map"].values()}
        )
    save_file(load_file(model / WEIGHTS), shards / WEIGHTS)
    changed(shards, lambda t: t["lm_head.weight"].zero_())
    assert mark(shards) != before, "a single file takes precedence over shards, as in transformers"


def test_an_adapter_in_the_folder_of_a_model_is_not_loaded(model: Path) -> None:
    base = load_base(ModelConfig(name=str(model)), LoraConfig())
    expected = logits(model)
    base.model.save_pretrained(str(model))
    page = json.loads((model / "adapter_config.json").read_text())
    assert page["peft_type"] == "LORA"
    changed(model, lambda t: [x.fill_(0.3) for x in t.values()], "adapter_model.safetensors")
    load_base.cache_clear()
    assert logits(model).equal(expected)


def test_a_replaced_file_of_equal_size_and_time_is_noticed(model: Path) -> None:
    before, stat = mark(model), (model / WEIGHTS).stat()
    changed(model, lambda t: t["lm_head.weight"].zero_())
    os.utime(model / WEIGHTS, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (model / WEIGHTS).stat().st_size == stat.st_size
    assert mark(model) != before


def pickled(folder: Path, *, shards: int = 1) -> Path:
    """The same weights as a pickle, one tensor in it sharing the memory of another."""
    tensors = load_file(folder / WEIGHTS)
    tensors["shared.weight"] = tensors["model.norm.weight"]
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return folder
    places = {name: f"pytorch_model-{i % shards + 1:05}-of-{shards:05}.bin" for i, name in enumerate(names)}
    for file in set(places.values()):
        torch.save({n: t for n, t in tensors.items() if places[n] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


@pytest.mark.parametrize("count", [1, 3])
def test_pickled_weights_are_converted_once(model: Path, tmp_path: Path, count: int) -> None:
    expected = logits(model)
    pickled(model, shards=count)
    save_file({"lm_head.weight": torch.zeros(3)}, model / "decoy.safetensors")
    load_base.cache_clear()
    assert logits(model).equal(expected)
    assert is_pickled(ModelConfig(name=str(model)))
    files = weights_of(model).files
    assert all(tmp_path / "home" in file.parents for file in files)
    assert len(files) == count
    times = [file.stat().st_mtime_ns for file in files]
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    assert mark(copy) == mark(model)
    assert [file.stat().st_mtime_ns for file in weights_of(copy).files] == times


class Trap:
    """A pickled object that runs code when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused(model: Path, tmp_path: Path) -> None:
    tensors = {"lm_head.weight": torch.zeros(2), "trap": Trap(tmp_path / "ran")}
    without(model, WEIGHTS)
    torch.save(tensors, model / "pytorch_model.bin")
    assert "run code" in refusal(model)
    for content in (
        pickle.dumps(tensors["trap"]),
        b"garbage",
        (model / "pytorch_model.bin").read_bytes()[:300],
    ):
        (model / "pytorch_model.bin").write_bytes(content)
        assert "cannot be read as a table of tensors" in refusal(model)
    torch.save([torch.zeros(2)], model / "pytorch_model.bin")
    assert "got a list" in refusal(model)
    assert not (tmp_path / "ran").exists()
    assert not list((tmp_path / "home" / "converted").glob("*/*.safetensors"))


def test_weights_of_other_formats_are_named(model: Path) -> None:
    without(model, WEIGHTS)
    for name, expected in (
        ("model.fp16.safetensors", "rename"), ("tf_model.h5", "another framework"), ("tiny.gguf", "GGUF"),
        ("consolidated.00.pth", "maker's own"),
    ):  # fmt: skip
        (model / name).write_bytes(b"-")
        line = refusal(model)
        assert WEIGHTS in line
        assert expected in line
        (model / name).unlink()
    assert "holds no weights" in refusal(model)
