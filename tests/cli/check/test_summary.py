"""accord check: what it finds before a run starts, and what it refuses."""

import json
import socket
from pathlib import Path

import pytest

from cli.check import survey
from cli.check.rehearsal import rehearse
from cli.run.launch import launch
from cli.run.request import request
from client_app.node import Node
from client_app.site import Site
from core.config import parse
from core.errors import AccordError, ConfigError
from tasks.training import engine

FEW = ["federation.num-supernodes=2", "data.rows-per-client=8", "data.eval-rows-per-client=4"]
SECRET = "the quiet otter"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ACCORD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    return tmp_path / "home"


def checked(*words: str, **options) -> list[str]:
    return list(rehearse(request(list(words)), survey, **options))


def section(lines: list[str], name: str) -> str:
    """The lines from the one that begins with `name` to the next name."""
    start = next(i for i, line in enumerate(lines) if line.startswith(name))
    end = next((i for i in range(start + 1, len(lines)) if lines[i][:1] != " "), len(lines))
    return "\n".join(lines[start:end])


def own_rows(folder: Path, **files: list[dict]) -> str:
    folder.mkdir()
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return f"data.path={folder}"


def thumb(words: int, label: bool) -> dict:
    return {"prompt": SECRET, "completion": " ".join(["fish"] * words), "label": label}


def test_a_good_run_is_described_and_nothing_is_warned_of():
    lines = checked(*FEW)
    assert "2 clients, 16 rows to train on (8 each), 8 held out (4 each)" in section(lines, "rows")
    assert "no row is above train.max-length = 256" in section(lines, "lengths")
    assert all(word in section(lines, "model") for word in ("float32", "on cpu", "packed", "fingerprint"))
    assert "12 rounds of 2 clients; 10 steps x 8 rows per client and round: 10 passes" in section(
        lines, "steps"
    )
    assert "at a time on" in section(lines, "memory")
    assert not [line for line in lines if line.startswith("warning")]
    assert checked(*FEW, warnings_only=True) == []


def test_own_rows_are_counted_by_file_client_and_reason(tmp_path):
    north = [thumb(3, True)] * 30 + [{"text": SECRET}] * 2
    path = own_rows(tmp_path / "rows", north=north, south=[thumb(40, True)] * 10)
    words = ["own-files.toml", "task.name=kto", path, "train.max-length=16", "data.prompt-format=none"]
    lines = checked(*words)
    assert "2 files" in section(lines, "files")
    assert "north.jsonl, south.jsonl" in section(lines, "files")
    assert "2 x misses columns" in section(lines, "refused")
    assert "100.0 % desirable" in section(lines, "labels")
    lengths = section(lines, "lengths")
    assert "% above train.max-length = 16" in lengths
    assert "each is cut" in lengths
    assert "train.max-length=64 holds 95 %" in lengths
    warned = "\n".join(line for line in lines if line.startswith("warning"))
    assert "model.name = 'toy'" in warned
    assert "label is not inverted" in warned
    assert SECRET not in "\n".join(lines), "no row is shown unless --show-rows asks for it"
    assert "fill train.max-length = 16 and may be cut" in "\n".join(checked(*words, warnings_only=True))


def test_rows_are_shown_as_the_model_will_see_them():
    lines = checked(*FEW, show_rows=2)
    assert section(lines, "row 2").count("\n") == 2
    assert "prompt      <s><|user|>" in section(lines, "row 1")
    assert "</s>" in section(lines, "row 1").splitlines()[1]


def test_the_tokens_are_those_that_the_clients_will_look_for(home):
    checked(*FEW, warnings_only=True)
    config = parse(request(FEW).keys)
    site = Site(config, Node(1, 2))
    before = {file: file.stat().st_mtime_ns for file in home.rglob("tokens-*")}
    engine.encode_training_rows(site.base(), site.task, site.parts()[0], config, site.cache)
    assert before
    assert {file: file.stat().st_mtime_ns for file in home.rglob("tokens-*")} == before


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["eval.prompts=nope.txt"], "nope.txt': no such file"),
        (["eval.benchmarks=preference", "eval.pairs=nope.jsonl"], "nope.jsonl': expected a JSON lines file"),
        (["model.device=nope"], "model.device"),
        (["model.name=/no/such/folder"], "model.name"),
        (["lora.target-modules=nope"], "lora.target-modules = 'nope'"),
        (["data.source=jsonl", "data.path=/no/such/folder"], "data.path"),
        (["federation.superlink=nope"], "federation.superlink = 'nope'"),
        (
            ["data.partitioner=dirichlet", "data.dirichlet-alpha=0.001", "federation.num-supernodes=9"],
            "client",
        ),
        (["train.engine=trl", "strategy.name=scaffold", "train.optimizer=sgd"], "train.engine = 'trl'"),
        (["train.max-length=8", "train.on-long-row=error"], "train.max-length = 8"),
        (["client.state-dir=/dev/null/x"], "client.state-dir"),
    ],
)
def test_what_would_stop_a_run_is_refused_in_one_line(words, named):
    with pytest.raises(AccordError, match=named.replace("(", r"\(")) as refused:
        checked(*FEW, *words, warnings_only=True)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "content"), [("eval.prompts", b"\xff\xfe"), ("eval.prompts", b"\n \n"), ("eval.pairs", b"\xff")]
)
def test_a_file_of_the_servers_that_cannot_be_read_is_refused(tmp_path, key, content):
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=key):
        checked(
            *FEW, "eval.benchmarks=preference" if key == "eval.pairs" else "eval.every=1", f"{key}={file}"
        )


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null/below", "~nobody-of-this-name/x"])
def test_a_home_that_cannot_be_written_is_named(monkeypatch, home):
    monkeypatch.setenv("ACCORD_HOME", home)
    with pytest.raises(ConfigError, match="ACCORD_HOME"):
        checked(*FEW, warnings_only=True)
    with pytest.raises(ConfigError, match="ACCORD_HOME"):
        launch(request(FEW), verbose=False)


def test_rows_of_a_deployment_are_at_its_sites(tmp_path):
    """A SuperLink that runs elsewhere, behind a forwarded port: its files and its model are not looked for here."""
    with socket.create_server(("127.0.0.1", 0)) as forwarded:
        known(tmp_path / "flwr", f"127.0.0.1:{forwarded.getsockname()[1]}")
        words = ["federation.superlink=here", "model.name=/on/the/server", "eval.prompts=there.txt"]
        lines = checked(*words)
        with pytest.raises(ConfigError, match="at the sites"):
            checked(*words, show_rows=1)
    assert "each site reads its own" in section(lines, "files")
    assert "the server is another machine" in section(lines, "model")
    assert "eval.prompts = 'there.txt'" in section(lines, "warning")


def test_a_superlink_that_does_not_answer_is_refused_at_once(tmp_path):
    known(tmp_path / "flwr", "127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"'here': no answer from 127.0.0.1:1 .*accord start"):
        checked("federation.superlink=here")
    with pytest.raises(ConfigError, match=r"\[superlink.there\] in .*, which has here; set FLWR_HOME"):
        checked("federation.superlink=there")


def known(home: Path, address: str) -> None:
    home.mkdir(exist_ok=True)
    text = f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{address}"\ninsecure = true\n'
    (home / "config.toml").write_text(text)
