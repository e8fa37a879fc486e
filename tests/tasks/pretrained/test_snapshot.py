"""Fetch models and data sets from a Hub on the loopback interface with the real clients, each in its own process."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from tests import tiny
from tests.hub import Fault, Hub
from tests.hub_files import etag
from tests.paths import ROOT

FETCH = """
import json, sys
from core.errors import ConfigError
from core.sections import ModelConfig
from tasks.pretrained.snapshot import fetch
out = []
for name, revision in json.loads(sys.argv[1]):
    try:
        out.append(["", str(fetch(ModelConfig(name=name, revision=revision)))])
    except ConfigError as error:
        out.append([str(error), ""])
print(json.dumps(out))
"""
ROWS = """
import json, sys
from core.errors import ConfigError
from tasks.data.hub import Hub
out = []
for options in json.loads(sys.argv[1]):
    try:
        out.append(["", len(list(Hub(**options).rows(0, 1)))])
    except ConfigError as error:
        out.append([str(error), 0])
print(json.dumps(out))
"""
DECOYS = {
    "consolidated.safetensors": b"decoy", "model-00009-of-00009.safetensors": b"decoy", "pytorch_model.bin": b"decoy",
    "original/params.json": b"{}", "tiny.gguf": b"GGUF", "onnx/model.onnx": b"decoy", "README.md": b"# tiny",
}  # fmt: skip


INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    server, root = Hub(), tmp_path_factory.mktemp("hub")
    whole = tiny.folder(root / "whole", chat=True)
    templates = whole / "additional_chat_templates"
    templates.mkdir(exist_ok=True)
    (templates / "rag.jinja").write_text("{{ messages }}")
    sharded = tiny.folder(root / "sharded", shard_size="20KB")
    files = _files(whole)
    server.model("org/tiny", {**files, **DECOYS})
    server.model("org/tiny", {**files, "vocab_note.txt": b"v1"}, "v1")
    server.model("org/shards", {**_files(sharded), **DECOYS})
    bins = {k: v for k, v in files.items() if k != "model.safetensors"}
    torch.save({"lm_head.weight": torch.zeros(2)}, root / "weights")
    server.model("org/pickled", {**bins, "pytorch_model.bin": (root / "weights").read_bytes()})
    for name in ("gated", "private", "busy", "broken", "torn", "down", "token", "torn-list"):
        server.model(
            f"org/{name}",
            {**files, "vocab_note.txt": name.encode(), "model.safetensors": _distinct_weights(files, name)},
        )
    server.model("org/adapter", {"adapter_config.json": b'{"base_model_name_or_path": "org/tiny"}'})
    server.model("org/gguf", {"tiny-q4.gguf": b"GGUF"})
    rows = [{"prompt": "p", "chosen": "good", "rejected": "bad"}] * 3
    (root / "rows").mkdir()
    Dataset.from_list(rows).to_parquet(root / "rows" / "train.parquet")
    server.dataset("org/prefs", root / "rows")
    Dataset.from_list(rows * 2).to_parquet(root / "rows" / "train.parquet")
    server.dataset("org/prefs", root / "rows", "v2")
    server.dataset("org/gated-rows", root / "rows")
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _fresh(hub: Hub) -> None:
    hub.forget()
    hub.pause_s = 0.0


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _distinct_weights(files: dict[str, bytes], name: str) -> bytes:
    """The weights with other last bytes, so that every repository has another content."""
    return files["model.safetensors"][:-8] + name.encode().ljust(8)[:8]


def start(hub: Hub, home: Path, program: str, cases: list, **env: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DOWNLOAD_TIMEOUT": "5", **env}
    return subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(cases)],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def results_of(process: subprocess.Popen[str]) -> list:
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    results = json.loads(out.splitlines()[-1])
    assert all("\n" not in error for error, _ in results)
    return results


def fetch_all(hub: Hub, home: Path, *cases: tuple[str, str], **env: str) -> list:
    """[error, folder] of each model and revision, fetched one after the other by one process."""
    return results_of(start(hub, home, FETCH, list(cases), **env))


def test_exactly_the_needed_files_are_downloaded_once_and_work_offline(hub: Hub, tmp_path: Path) -> None:
    hub.pause_s = 1.0
    cases = [("org/tiny", "main"), ("org/shards", "main")]
    processes = [start(hub, tmp_path, FETCH, cases) for _ in range(2)]
    results = [results_of(process) for process in processes]
    assert results[0] == results[1]
    folders = [Path(folder) for _, folder in results[0]]
    assert {p.name for p in folders[0].iterdir()} == {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "additional_chat_templates", "model.safetensors",
    }  # fmt: skip
    shards = sorted(p.name for p in folders[1].glob("*.safetensors"))
    assert "model-00009-of-00009.safetensors" not in shards
    assert len(shards) > 1
    assert hub.fetched("org/tiny/model.safetensors") == 1
    assert all(hub.fetched(f"org/shards/{name}") == 1 for name in shards)

    hub.forget()
    commit = folders[0].name
    offline = fetch_all(hub, tmp_path, *cases, ("org/tiny", commit), ("org/tiny", "v1"), HF_HUB_OFFLINE="1")
    assert [folder for _, folder in offline[:3]] == [*map(str, folders), str(folders[0])]
    assert "HF_HUB_OFFLINE" in offline[3][0]
    assert not hub.requests


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: Hub, tmp_path: Path) -> None:
    commit = hub.models["org/tiny"].refs["v1"]
    results = fetch_all(hub, tmp_path, ("org/tiny", "v1"), ("org/tiny", commit), ("org/tiny", "v9"))
    assert results[0] == results[1] == ["", results[0][1]]
    assert Path(results[0][1]).name == commit
    assert "no such branch, tag or commit" in results[2][0]
    assert hub.fetched("org/tiny/model.safetensors") == 1


def test_an_incomplete_cache_is_completed_or_offline_refused(hub: Hub, tmp_path: Path) -> None:
    """Left by another tool: the configuration, the tokenizer, one of two shards, and a truncated shard."""
    names = sorted(_weight_map(hub))
    parts = {
        "config": (["config.json"], "holds no weights"),
        "tokenizer": (["tokenizer.json", "tokenizer_config.json"], "config.json"),
        "shard": (["config.json", "tokenizer.json", "tokenizer_config.json", INDEX, names[0]], names[1]),
    }
    files = hub.models["org/shards"].commits[hub.models["org/shards"].refs["main"]]
    for kind, (names_there, _) in parts.items():
        hub.model(f"org/half-{kind}", files)
        for name in names_there:
            _other_tool(hub, tmp_path, f"org/half-{kind}", name)
    cases = [(f"org/half-{kind}", "main") for kind in parts]
    for (_, missing), (error, _) in zip(
        parts.values(), fetch_all(hub, tmp_path, *cases, HF_HUB_OFFLINE="1"), strict=True
    ):
        assert missing in error
        assert "HF_HUB_OFFLINE" in error
    (snapshot,) = tmp_path.glob("hub/models--org--half-shard/snapshots/*")
    blob = (snapshot / names[0]).resolve()
    blob.write_bytes(blob.read_bytes()[:-9])
    hub.forget()
    for error, folder in fetch_all(hub, tmp_path, *cases):
        assert not error
        assert all((Path(folder) / name).stat().st_size == size for name, size in _weight_map(hub).items())
    assert hub.fetched("org/half-shard/tokenizer.json") == 0, "it was in the cache"


def _weight_map(hub: Hub) -> dict[str, int]:
    """The shards and their sizes."""
    repository = hub.models["org/shards"]
    files = repository.commits[repository.refs["main"]]
    index = json.loads(files[INDEX])
    return {name: len(files[name]) for name in set(index["weight_map"].values())}


def _other_tool(hub: Hub, home: Path, name: str, file: str) -> None:
    """Put a file into the cache as hf_hub_download() does: without a list of the repository's files."""
    repository = hub.models[name]
    commit = repository.refs["main"]
    root = home / "hub" / f"models--{name.replace('/', '--')}"
    content = repository.commits[commit][file]
    blob, link = root / "blobs" / etag(file, content), root / "snapshots" / commit / file
    for path in (blob, link, root / "refs" / "main"):
        path.parent.mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    blob.write_bytes(content)
    link.symlink_to(blob)


def test_every_error_of_the_hub_names_a_remedy(hub: Hub, tmp_path: Path) -> None:
    expected = {
        "org/gated": ("accept its licence at", hub.url + "/org/gated"),
        "org/private": ("hf auth login", "check the spelling"),
        "org/token": ("does not accept", "HF_TOKEN"),
        "org/busy": ("429", "wait"),
        "org/down": ("503", "later"),
        "org/torn": ("broke off", "run again"),
        "org/nothing": ("no such model", "check the spelling"),
        "org/adapter": ("is an adapter of 'org/tiny'", "model.name"),
        "org/gguf": ("GGUF", "cannot be trained"),
        "org tiny": ("org tiny", "local folder", "NAMESPACE/NAME"),
    }
    hub.faults = [
        Fault("org/gated", 403, "GatedRepo", "Access to model org/gated is restricted"),
        Fault("org/private", 401, "RepoNotFound", "Repository not found"),
        Fault("org/token", 401, "", "Invalid credentials in Authorization header"),
        Fault("org/busy", 429),
        Fault("org/down", 503),
        Fault("org/torn/model.safetensors", cut=0),
    ]
    results = fetch_all(hub, tmp_path, *((name, "main") for name in expected))
    for (name, parts), (error, _) in zip(expected.items(), results, strict=True):
        assert all(part in error for part in parts), (name, error)
        assert "model.name" in error


def test_a_download_that_breaks_off_is_retried(hub: Hub, tmp_path: Path) -> None:
    hub.faults = [Fault("org/broken/model.safetensors", cut=5000, times=2)]
    ((error, folder), other) = fetch_all(hub, tmp_path, ("org/broken", "main"), ("org/pickled", "main"))
    assert not error
    assert (Path(other[1]) / "pytorch_model.bin").is_file(), (
        "pickled weights are downloaded if there are no others"
    )
    assert (Path(folder) / "model.safetensors").read_bytes() == _content(hub, "org/broken")
    gets = [count for path, count in hub.requests.items() if path.startswith("GET /cdn/")]
    assert max(gets) == 3, "two tries broke off"


def _content(hub: Hub, name: str) -> bytes:
    repository = hub.models[name]
    return repository.commits[repository.refs["main"]]["model.safetensors"]


def test_the_cache_is_used_while_the_hub_is_busy_or_unreachable(hub: Hub, tmp_path: Path) -> None:
    fetch_all(hub, tmp_path, ("org/tiny", "main"))
    hub.faults = [Fault("org/tiny", 429)]
    assert not fetch_all(hub, tmp_path, ("org/tiny", "main"))[0][0]
    unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    results = fetch_all(hub, tmp_path, ("org/tiny", "main"), ("org/shards", "main"), **unreachable)
    assert not results[0][0]
    assert "check the network" in results[1][0]


def test_a_data_set_is_downloaded_once_at_its_revision(hub: Hub, tmp_path: Path) -> None:
    hub.faults = [Fault("org/gated-rows", 403, "GatedRepo", "restricted")]
    cases = [{"dataset": "org/prefs", "revision": "v2"}, {"dataset": "org/prefs"}, {"dataset": "org/gated-rows"},
             {"dataset": "org/nothing"}, {"dataset": "org/prefs", "revision": "v9"},
             {"dataset": "org/prefs", "split": "dev"}]  # fmt: skip
    results = results_of(start(hub, tmp_path, ROWS, cases))
    assert [count for _, count in results[:2]] == [6, 3]
    expected = ("accept its licence", "no such dataset", "no such branch", "'dev'")
    assert all(word in error for word, (error, _) in zip(expected, results[2:], strict=True)), results
    hub.forget()
    cases = [{"dataset": "org/prefs"}, {"dataset": "org/prefs", "revision": "v2"}, {"dataset": "org/nothing"}]
    results = results_of(start(hub, tmp_path, ROWS, cases, HF_HUB_OFFLINE="1"))
    assert results[0] == ["", 3]
    assert "v2" in results[1][0], "the cache holds another commit only, whose rows must not be used instead"
    assert "HF_HUB_OFFLINE" in results[2][0]
    assert not hub.requests
