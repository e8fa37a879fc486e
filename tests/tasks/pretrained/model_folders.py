"""Folders of models, and the one line in which one is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import ConfigError
from core.sections import LoraConfig, ModelConfig
from tasks.forward.setup import load_base
from tasks.model.fingerprint import fingerprint
from tasks.pretrained.loading import load_tokenizer

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665a5ea423c2713d436b5ee50593a9640e0018c1550b5a0002f74190d6caea8\nsize 12\n"  # noqa: E501 - as it is
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
IDS = torch.tensor([[1, 5, 9, 30]])


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
