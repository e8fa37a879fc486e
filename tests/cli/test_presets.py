"""Every preset is valid, and arguments override presets."""

import gzip
import json
from pathlib import Path

import pytest

from cli.run.request import request
from core.errors import ConfigError, DataError
from tests.paths import ROOT


@pytest.mark.parametrize("path", sorted((ROOT / "presets").glob("*.toml")), ids=lambda p: p.name)
def test_a_preset_is_valid_and_begins_with_a_comment(path):
    run_request = request([path.name])
    assert run_request.keys, "a preset changes something"
    assert path.read_text().startswith("# ")


def test_an_argument_overrides_a_preset():
    run_request = request(["kto-toy.toml", "task.reference-point=batch", "federation.num-supernodes=3"])
    assert run_request.keys["task.name"] == "kto"
    assert run_request.keys["task.reference-point"] == "batch"
    assert run_request.federation["num-supernodes"] == 3
    assert run_request.keys["strategy.min-available-nodes"] == 3


def test_choosing_another_strategy_drops_the_presets_keys_of_its_own_strategy():
    run_request = request(["fedbiscuit-toy.toml", "strategy.name=fedbis"])
    assert not {k for k in run_request.keys if k.startswith("strategy.warmup")}
    assert run_request.keys["data.types"] == 3
    with pytest.raises(ConfigError, match="no effect"):
        request(["fedbiscuit-toy.toml", "strategy.name=fedbis", "strategy.warmup=interleaved"])
    with pytest.raises(ConfigError, match="did you mean 'fedbis'"):
        request(["fedbiscuit-toy.toml", "strategy.name=fedbiz"])


def test_choosing_another_task_drops_the_keys_of_an_earlier_presets_task(tmp_path):
    (tmp_path / "sft.toml").write_text('# Demonstrations.\n[task]\nname = "sft"\n')
    first = tmp_path / "dpo.toml"
    first.write_text("# Pairs.\n[task]\nbeta = 0.1\n")
    assert request([str(first)]).keys["task.beta"] == 0.1
    for argument in (str(tmp_path / "sft.toml"), "task.name=sft"):
        assert "task.beta" not in request([str(first), argument]).keys
    with pytest.raises(ConfigError, match="no effect"):
        request([str(first), str(tmp_path / "sft.toml"), "task.beta=0.2"])


def test_later_presets_override_earlier_ones():
    run_request = request(["kto-toy.toml", "gpu.toml", "model.dtype=float16"])
    assert run_request.keys["task.name"] == "kto"
    assert run_request.keys["model.device"] == "cuda"
    assert run_request.keys["model.dtype"] == "float16"
    with pytest.raises(ConfigError, match=r"preset files first.*gpu.toml"):
        request(["kto-toy.toml", "run.seed=2", "gpu.toml"])


def write(path: Path, owners: list[str]) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        for n, owner in enumerate(owners):
            row = {"prompt": f"p{n}", "chosen": "good", "rejected": "bad", "worker": owner}
            file.write(json.dumps(row) + "\n")
    return path


def test_a_folder_of_files_is_simulated_with_a_client_for_each(tmp_path):
    write(tmp_path / "a.jsonl", ["x", "x", "y", "z"])
    write(tmp_path / "b.jsonl.gz", ["x"])
    (tmp_path / "notes.txt").touch()
    folder = ["own-files.toml", f"data.path={tmp_path}"]
    run_request = request(folder)
    assert run_request.federation["num-supernodes"] == run_request.keys["strategy.min-available-nodes"] == 2
    for arguments, clients in (
        ([*folder, "federation.num-supernodes=3"], 3),
        ([*folder, "data.partitioner=iid"], 8),
        ([f"data.path={tmp_path / 'a.jsonl'}", "data.source=jsonl", "data.client-column=worker"], 3),
        (["own-files.toml"], 8),  # without data.path
    ):
        assert request(arguments).federation["num-supernodes"] == clients


def test_a_note_says_that_the_number_of_clients_is_that_of_the_owners_in_a_file(tmp_path):
    path = write(tmp_path / "rows.jsonl", [f"w{n % 31}" for n in range(62)])
    run_request = request(["own-files.toml", f"data.path={path}", "data.client-column=worker"])
    assert run_request.federation["num-supernodes"] == run_request.keys["strategy.min-available-nodes"] == 31
    (line,) = run_request.notes
    assert all(part in line for part in ("31", "worker", "rows.jsonl", "federation.num-supernodes=N"))
    assert not request(["own-files.toml", f"data.path={path}", "federation.num-supernodes=4"]).notes


def test_owners_without_usable_rows_are_not_clients(tmp_path):
    """One worker liked no completion, so SFT has nothing to imitate. Rows without an owner are refused."""
    rows = [{"prompt": f"p{n}", "completion": "c", "label": n > 1, "worker": f"w{n // 2}"} for n in range(8)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["own-files.toml", f"data.path={path}", "data.client-column=worker"]
    sizes = {task: request([*arguments, f"task.name={task}"]).federation for task in ("kto", "sft")}
    assert [sizes[task]["num-supernodes"] for task in ("kto", "sft")] == [4, 3]
    with pytest.raises(DataError, match=r"8 of 8 rows"):
        request([*arguments, "data.client-column=nobody", "task.name=kto"])


def test_a_simulation_does_not_wait_for_more_clients_than_it_has():
    with pytest.raises(ConfigError, match=r"min-available-nodes = 5.* 3 clients.*federation\.num-supernodes"):
        request(["federation.num-supernodes=3", "strategy.min-available-nodes=5"])


def test_paths_become_absolute_in_a_simulation_only(tmp_path, monkeypatch):
    write(tmp_path / "rows.jsonl", ["x", "y"])
    monkeypatch.chdir(tmp_path)
    arguments = ["own-files.toml", "data.path=rows.jsonl", "data.client-column=worker"]
    assert request(arguments).keys["data.path"] == str(tmp_path / "rows.jsonl")
    assert request([*arguments, "federation.superlink=clinics"]).keys["data.path"] == "rows.jsonl"


@pytest.mark.parametrize(
    "argument",
    [
        "federation.num-supernodes=0",
        "federation.client-cpus=0",
        "federation.client-cpus=nan",
        "federation.client-cpus=1.5",
        "federation.client-gpus=-1",
        "federation.client-gpus=inf",
    ],
)
def test_an_impossible_federation_is_refused(argument):
    with pytest.raises(ConfigError, match=argument.split("=")[0]):
        request([argument])
