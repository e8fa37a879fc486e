"""SITE.toml: what the documentation shows is what is read."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from cli.site.site_file import SiteFile
from client_app.node import Node
from core.errors import ConfigError
from tests.paths import ROOT

LEAST = 'address = "unix:s.sock"\npartition-id = 1\nnum-partitions = 3\n'
SHOWN = re.findall(r"```toml\n(address.*?)```", (ROOT / "docs" / "sites.md").read_text(), re.DOTALL)[0]


def read(tmp_path: Path, text: str, *words: str) -> SiteFile:
    (tmp_path / "site.toml").write_text(text)
    return SiteFile.read(tmp_path / "site.toml", words)


def test_the_page_shows_every_key_and_the_defaults():
    shown = tomllib.loads(SHOWN)
    defaults = {f.name.replace("_", "-"): f.default for f in fields(SiteFile)}
    assert shown.keys() == defaults.keys()
    of_the_site = {"address", "partition-id", "num-partitions", "data-path", "state-dir"}
    assert {k: v for k, v in shown.items() if k not in of_the_site} == {
        k: v for k, v in defaults.items() if k not in of_the_site
    }


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    site = read(tmp_path, LEAST + 'data-path = "rows.jsonl"\nstate-dir = "/var/x"\n')
    assert site.address == f"unix:{tmp_path}/s.sock"
    assert site.facts["data-path"] == str(tmp_path / "rows.jsonl")
    assert site.facts["state-dir"] == "/var/x"


def test_data_source_reaches_the_node_of_the_site(tmp_path):
    (tmp_path / "rows").write_text("")
    site = read(tmp_path, LEAST + 'data-path = "rows"\ndata-source = "jsonl"\n')
    assert Node.read(site.facts).data_source == "jsonl"


def test_words_win(tmp_path):
    assert read(tmp_path, LEAST, "partition-id=2", "idle-s=3").partition_id == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["address=0.0.0.0:7000"], "on the same machine"),
        (["address=[::]:7000"], "on the same machine"),
        (["address=::1:7000"], "on the same machine"),
        (["address=[127.0.0.1]:7000"], "on the same machine"),
        (["address=example.org:7000"], "on the same machine"),
        (["address=127.0.0.1:7000"], "every user of this machine can reach it; set token-file"),
        ([f"address=unix:{'x' * 120}"], "at most 100 bytes"),
        (["adress=x"], "unknown key 'adress'; did you mean 'address'?"),
        (["partition-id=9"], "partition-id must be from 0 to num-partitions - 1 = 2, got 9"),
        (["partition-id=one"], "partition-id must be int, got 'one'"),
        (["data-path=nowhere.jsonl"], "no such file"),
        (["data-path=site.toml"], "site.toml"),
        (["data-path=site.toml", "data-source=toy"], "data-source = 'toy'"),
        (["socket-mode=0666"], "socket-mode must be '0600' or '0660'"),
        (["idle-s=0"], "max-message-mb and idle-s must be above 0"),
        (["idle-s=inf"], "max-message-mb and idle-s must be above 0"),
        (["max-message-mb=4096"], "max-message-mb and idle-s must be above 0"),
        (["address=127.0.0.1:99999"], "address must be unix:///PATH.sock or 127.0.0.1:PORT"),
        (["address=127.0.0.1:0"], "address must be unix:///PATH.sock or 127.0.0.1:PORT"),
        (['address="unix:a\\u0000"'], "address must be str"),
        (["policy"], "expected KEY=VALUE"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, words, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read(tmp_path, LEAST, *words)


@pytest.mark.parametrize("address", ["127.0.0.1:7000", "localhost:7000", "[::1]:7000"])
def test_a_site_may_listen_on_the_loopback(tmp_path, address):
    assert read(tmp_path, LEAST, f"address={address}", "token-file=token").address == address


def test_a_file_without_who_it_is_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"site\.toml: the key 'num-partitions' is missing"):
        read(tmp_path, LEAST.rsplit("\n", 2)[0] + "\n")


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [("short", 0o600, "at least 16 characters"), ("0123456789abcdef", 0o644, "chmod 600")],
)
def test_a_token_that_guards_nothing_is_refused(tmp_path, text, mode, message):
    (tmp_path / "token").write_text(text)
    (tmp_path / "token").chmod(mode)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, LEAST, "address=127.0.0.1:7000", "token-file=token").token()


def test_a_token_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "token").write_bytes(b"\xff" * 20)
    (tmp_path / "token").chmod(0o600)
    site = read(tmp_path, LEAST, "address=127.0.0.1:7000", "token-file=token")
    with pytest.raises(ConfigError, match="ASCII text only"):
        site.token()
