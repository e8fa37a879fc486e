"""What an earlier version wrote is read, and what a later one wrote is refused in one line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cli.site.policy.ledger import Ledger
from cli.site.policy.rules import OPEN, Policy
from client_app.private_memory import Memory
from core import store
from core.config import parse
from core.errors import AccordError, CheckpointError, PolicyRefused
from server_app.report.reading import read_config
from server_app.run_folder import RunFolder
from tests.paths import ROOT
from tests.sites import federate

SAVED = ROOT / "tests" / "saved_run"
POLICY = Policy(**OPEN)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A copy of the run of 0.2.0 after round 1: the server's folder, and the memory of two sites."""
    for name in ("server", "site-10", "site-11"):
        shutil.copytree(SAVED / name, tmp_path / name)
    return tmp_path


def of_later_format(facts: Path) -> None:
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "format": store.FORMAT + 1}))


def test_a_run_of_version_0_2_0_is_resumed(place: Path) -> None:
    """Private memory is recalled (SCAFFOLD's controls, Adam's moments), and round 1 stays as it is."""
    folder, config = RunFolder(place / "server"), parse(read_config(place / "server")[0])
    before, control = folder.load_state(), "memory/control"
    lines = (place / "server" / "metrics.jsonl").read_text()
    federate(config, place, 2, folder, clients=2)
    after = folder.load_state()
    assert before is not None
    assert after is not None
    assert (before.round, after.round) == (1, 2)
    assert (place / "server" / "metrics.jsonl").read_text().startswith(lines)
    trees = [store.load(store.round_folder(folder.checkpoints, rnd))[0] for rnd in (1, 2)]
    for name in ("adapters/global", control):
        assert trees[0][name].keys() == trees[1][name].keys()
        assert any(not t.equal(trees[1][name][n]) for n, t in trees[0][name].items()), name
    assert store.rounds(place / "site-10" / "memory" / "r" / "0") == [1, 2]


def test_folders_of_before_the_number_are_of_format_1(place: Path) -> None:
    facts = place / "server" / "checkpoints" / "00001" / "facts.json"
    document = json.loads(facts.read_text())
    del document["format"]
    facts.write_text(json.dumps(document))
    state = RunFolder(place / "server").load_state()
    assert state is not None
    assert state.round == 1
    assert state.clients == len(state.examples) > 0
    assert all(type(client) is int for client in (*state.examples, *state.recall))
    assert not state.facts.keys() & {"clients", "examples", "recall", "pool", "rounds", "votes"}


def test_a_checkpoint_of_a_later_format_is_refused(place: Path) -> None:
    of_later_format(place / "server" / "checkpoints" / "00001" / "facts.json")
    with pytest.raises(CheckpointError, match=r"00001 has format 2.* reads format 1"):
        RunFolder(place / "server").load_state()


def test_private_memory_of_a_later_format_is_refused(place: Path) -> None:
    of_later_format(place / "site-10" / "memory" / "r" / "0" / "00001" / "facts.json")
    with pytest.raises(AccordError, match=r"00001 has format 2.* reads format 1") as error:
        Memory(place / "site-10", "r", 0).load(1)
    assert "\n" not in str(error.value)


def test_a_ledger_of_a_later_format_is_refused(tmp_path: Path) -> None:
    """Its lines may count what this version does not know."""
    ledger = Ledger(tmp_path)
    ledger.enter(POLICY, "a", "anna", parse({}))
    ledger.enter(POLICY, "a", "anna", parse({}))
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write(json.dumps({"run": "b", "pin": "0", "format": 3}) + "\n")
    with pytest.raises(PolicyRefused, match=r"format 3.* reads formats 1 and 2"):
        ledger.enter(POLICY, "a", "anna", parse({}))


def test_a_run_in_a_ledger_of_the_first_format_cannot_go_on_but_counts(tmp_path: Path) -> None:
    """Its digests were made of other fields."""
    (tmp_path / "ledger.jsonl").write_text(json.dumps({"run": "a", "pin": "0"}) + "\n")
    ledger, policy = Ledger(tmp_path), replace(POLICY, max_runs=2)
    with pytest.raises(PolicyRefused, match=r"'a' .*earlier version.* start a new run"):
        ledger.enter(policy, "a", "anna", parse({}))
    ledger.enter(policy, "b", "anna", parse({}))
    with pytest.raises(PolicyRefused, match="number 3"):
        ledger.enter(policy, "c", "anna", parse({}))
