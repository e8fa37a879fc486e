"""Models by architecture."""

from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests import tiny
from tests.tasks.model.architectures import COMPOSITE, CONFIGS, SHARED


@pytest.fixture(scope="session")
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
            tiny.randomise(model)
        model.save_pretrained(root / name)
        tiny.tokenizer().save_pretrained(root / name)
        return root / name

    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("model") / "tiny")
