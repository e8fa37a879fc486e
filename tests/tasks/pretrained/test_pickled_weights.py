"""Pickled weights are converted once, and never run code."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.sections import ModelConfig
from tasks.forward.setup import is_pickled, load_base
from tasks.pretrained.convert import weights_of
from tests.tasks.pretrained.model_folders import WEIGHTS, logits, mark, refusal, without

pytestmark = pytest.mark.usefixtures("accord_home")


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
