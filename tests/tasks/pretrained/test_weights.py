"""Folders that are no whole model, each refused in one line; and what of a folder is loaded and covered."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.sections import LoraConfig, ModelConfig
from tasks.forward.setup import load_base
from tasks.pretrained.convert import weights_of
from tasks.pretrained.snapshot import fetch
from tests import tiny
from tests.tasks.pretrained.model_folders import (
    INDEX,
    LFS,
    WEIGHTS,
    changed,
    logits,
    mark,
    refusal,
    without,
    written,
)

pytestmark = pytest.mark.usefixtures("accord_home")


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
