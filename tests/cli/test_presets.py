"""Every preset parses: none can rot."""

import gzip
import json
from pathlib import Path

import pytest

from cli.run.request import request
from core.errors import ConfigError, DataError
from tests.paths import ROOT


@pytest.mark.parametrize("path", sorted((ROOT / "presets").glob("*.toml")), ids=lambda p: p.name)
def test_a_preset_parses_and_says_what_it_is(path):
    asked = request([path.name])
    assert asked.keys, "a preset changes something"
    assert path.read_text().startswith("# ")


def test_a_word_overrides_a_preset():
    asked = request(["kto-toy.toml", "task.reference-point=batch", "federation.num-supernodes=3"])
    assert asked.keys["task.name"] == "kto"
    assert asked.keys["task.reference-point"] == "batch"
    assert asked.federation["num-supernodes"] == 3
    assert asked.keys["strategy.min-available-nodes"] == 3


def test_another_strategy_than_the_presets_drops_the_keys_that_were_for_that_one():
    asked = request(["fedbiscuit-toy.toml", "strategy.name=fedbis"])
    assert not {k for k in asked.keys if k.startswith("strategy.warmup")}
    assert asked.keys["data.types"] == 3
    with pytest.raises(ConfigError, match="no effect"):
        request(["fedbiscuit-toy.toml", "strategy.name=fedbis", "strategy.warmup=interleaved"])
    with pytest.raises(ConfigError, match="did you mean 'fedbis'"):
        request(["fedbiscuit-toy.toml", "strategy.name=fedbiz"])


def test_another_task_than_an_earlier_presets_drops_the_keys_that_were_for_that_one(tmp_path):
    (tmp_path / "sft.toml").write_text('# Demonstrations.\n[task]\nname = "sft"\n')
    first = tmp_path / "dpo.toml"
    first.write_text("# Pairs.\n[task]\nbeta = 0.1\n")
    assert request([str(first)]).keys["task.beta"] == 0.1
    for more in (str(tmp_path / "sft.toml"), "task.name=sft"):
        assert "task.beta" not in request([str(first), more]).keys
    with pytest.raises(ConfigError, match="no effect"):
        request([str(first), str(tmp_path / "sft.toml"), "task.beta=0.2"])


def test_presets_are_laid_over_each_other_in_order():
    asked = request(["kto-toy.toml", "gpu.toml", "model.dtype=float16"])
    assert asked.keys["task.name"] == "kto"
    assert asked.keys["model.device"] == "cuda"
    assert asked.keys["model.dtype"] == "float16"
    with pytest.raises(ConfigError, match=r"preset files first.*gpu.toml"):
        request(["kto-toy.toml", "run.seed=2", "gpu.toml"])


def write(path: Path, owners: list[str]) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        for n, owner in enumerate(owners):
            row = {"prompt": f"p{n}", "chosen": "good", "rejected": "bad", "worker": owner}
            file.write(json.dumps(row) + "\n")
    return path


def test_a_folder_of_own_files_is_simulated_with_a_client_for_each(tmp_path):
    write(tmp_path / "a.jsonl", ["x", "x", "y", "z"])
    write(tmp_path / "b.jsonl.gz", ["x"])
    (tmp_path / "notes.txt").touch()
    own = ["own-files.toml", f"data.path={tmp_path}"]
    asked = request(own)
    assert asked.federation["num-supernodes"] == asked.keys["strategy.min-available-nodes"] == 2
    for words, clients in (
        ([*own, "federation.num-supernodes=3"], 3),
        ([*own, "data.partitioner=iid"], 8),
        ([f"data.path={tmp_path / 'a.jsonl'}", "data.source=jsonl", "data.client-column=worker"], 3),
        (["own-files.toml"], 8),  # where the rows are is not said
    ):
        assert request(words).federation["num-supernodes"] == clients


def test_the_number_of_clients_follows_the_owners_of_a_file_and_this_is_said(tmp_path):
    path = write(tmp_path / "rows.jsonl", [f"w{n % 31}" for n in range(62)])
    asked = request(["own-files.toml", f"data.path={path}", "data.client-column=worker"])
    assert asked.federation["num-supernodes"] == asked.keys["strategy.min-available-nodes"] == 31
    (line,) = asked.notes
    assert all(word in line for word in ("31", "worker", "rows.jsonl", "federation.num-supernodes=N"))
    assert not request(["own-files.toml", f"data.path={path}", "federation.num-supernodes=4"]).notes


def test_owners_who_cannot_be_trained_on_are_no_clients(tmp_path):
    """One worker liked nothing, so that there is nothing to imitate; rows without an owner are refused."""
    rows = [{"prompt": f"p{n}", "completion": "c", "label": n > 1, "worker": f"w{n // 2}"} for n in range(8)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["own-files.toml", f"data.path={path}", "data.client-column=worker"]
    sizes = {task: request([*words, f"task.name={task}"]).federation for task in ("kto", "sft")}
    assert [sizes[task]["num-supernodes"] for task in ("kto", "sft")] == [4, 3]
    with pytest.raises(DataError, match="8 of 8 rows do not say whose they are"):
        request([*words, "data.client-column=nobody", "task.name=kto"])


def test_a_simulation_does_not_wait_for_more_clients_than_it_has():
    with pytest.raises(ConfigError, match=r"min-available-nodes = 5, but the simulation has 3 clients"):
        request(["federation.num-supernodes=3", "strategy.min-available-nodes=5"])


def test_files_are_named_from_the_root_in_a_simulation_only(tmp_path, monkeypatch):
    write(tmp_path / "rows.jsonl", ["x", "y"])
    monkeypatch.chdir(tmp_path)
    words = ["own-files.toml", "data.path=rows.jsonl", "data.client-column=worker"]
    assert request(words).keys["data.path"] == str(tmp_path / "rows.jsonl")
    assert request([*words, "federation.superlink=clinics"]).keys["data.path"] == "rows.jsonl"


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
        request([word])
