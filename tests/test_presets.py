"""Every preset parses: none can rot."""

from pathlib import Path

import pytest

import accord
from core.errors import ConfigError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted((ROOT / "presets").glob("*.toml")), ids=lambda p: p.name)
def test_a_preset_parses_and_says_what_it_is(path):
    asked = accord.request([path.name])
    assert asked.keys, "a preset changes something"
    assert path.read_text().startswith("# ")


def test_a_word_overrides_a_preset():
    asked = accord.request(["kto-toy.toml", "task.reference-point=batch", "federation.num-supernodes=3"])
    assert asked.keys["task.name"] == "kto"
    assert asked.keys["task.reference-point"] == "batch"
    assert asked.federation["num-supernodes"] == 3
    assert asked.keys["strategy.min-available-nodes"] == 3


def test_another_strategy_than_the_presets_drops_the_keys_that_were_for_that_one():
    asked = accord.request(["fedbiscuit-toy.toml", "strategy.name=fedbis"])
    assert not {k for k in asked.keys if k.startswith("strategy.warmup")}
    assert asked.keys["data.types"] == 3
    with pytest.raises(ConfigError, match="no effect"):
        accord.request(["fedbiscuit-toy.toml", "strategy.name=fedbis", "strategy.warmup=interleaved"])
    with pytest.raises(ConfigError, match="did you mean 'fedbis'"):
        accord.request(["fedbiscuit-toy.toml", "strategy.name=fedbiz"])


def test_another_task_than_an_earlier_presets_drops_the_keys_that_were_for_that_one(tmp_path):
    (tmp_path / "sft.toml").write_text('# Demonstrations.\n[task]\nname = "sft"\n')
    assert accord.request(["own-files.toml"]).keys["task.beta"] == 0.1
    for more in (str(tmp_path / "sft.toml"), "task.name=sft"):
        assert "task.beta" not in accord.request(["own-files.toml", more]).keys
    with pytest.raises(ConfigError, match="no effect"):
        accord.request(["own-files.toml", str(tmp_path / "sft.toml"), "task.beta=0.2"])


def test_presets_are_laid_over_each_other_in_order():
    asked = accord.request(["kto-toy.toml", "gpu.toml", "model.dtype=float16"])
    assert asked.keys["task.name"] == "kto"
    assert asked.keys["model.device"] == "cuda"
    assert asked.keys["model.dtype"] == "float16"
    with pytest.raises(ConfigError, match="preset files first"):
        accord.request(["kto-toy.toml", "run.seed=2", "gpu.toml"])


def test_a_folder_of_own_files_is_simulated_with_a_client_for_each(tmp_path):
    for name in ("a.jsonl", "b.jsonl.gz", "notes.txt"):
        (tmp_path / name).touch()
    own = ["own-files.toml", f"data.path={tmp_path}"]
    asked = accord.request(own)
    assert asked.federation["num-supernodes"] == asked.keys["strategy.min-available-nodes"] == 2
    for words, clients in (
        ([*own, "federation.num-supernodes=3"], 3),
        ([*own, "data.partitioner=iid"], 8),
        ([f"data.path={tmp_path / 'a.jsonl'}", "data.source=jsonl"], 8),
    ):
        assert accord.request(words).federation["num-supernodes"] == clients


@pytest.mark.parametrize(
    "word",
    [
        "federation.num-supernodes=0",
        "federation.client-cpus=0",
        "federation.client-cpus=nan",
        "federation.client-cpus=1.5",
        "federation.client-gpus=-1",
        "federation.client-gpus=inf",
    ],
)
def test_a_federation_that_no_machine_has_is_refused(word):
    with pytest.raises(ConfigError, match=word.split("=")[0]):
        accord.request([word])
