"""A full disk, on the server or at a client, is reported on one line, and committed rounds are kept."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from core import store
from tests.faults.federation import files, run_of, start, undisturbed
from tests.faults.test_crashes import SMALL
from tests.federation.conftest import metrics_of
from tests.shared import once

pytestmark = pytest.mark.faults
WORDS = {**SMALL, "strategy.name": "scaffold"}
LINE = "accord: CheckpointError: cannot write"


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path, int], Path]]:
    """A function that mounts a disk with so many KiB free, and returns a file to delete for more.

    Skips if mounting is not permitted.
    """
    with ExitStack() as stack:

        def mount(path: Path, free_kib: int) -> None:
            path.mkdir(parents=True)
            result = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(path)], check=False
            )
            if result.returncode:
                pytest.skip("mounting a small disk is not permitted here")
            stack.callback(subprocess.run, ["umount", "--lazy", str(path)], check=False)
            (path / "ballast").write_bytes(bytes((8192 - free_kib) * 1024))
            return path / "ballast"

        yield mount


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return once(tmp_path_factory, "whole-disk", lambda place: undisturbed(WORDS, place))


@pytest.mark.parametrize("free_kib", [20, 280, 420, 500])
def test_a_full_disk_of_the_server_stops_the_run_and_it_can_be_resumed(whole, tmp_path, small_disk, free_kib):
    ballast = small_disk(tmp_path / "runs", free_kib)
    assert start(WORDS, tmp_path).ended() == 1
    log = (tmp_path / "log").read_text()
    errors = [line for line in log.splitlines() if line.startswith(LINE)]
    assert len(errors) == 1
    assert "No space left on device" in errors[0]
    ballast.unlink()
    if not list(
        (tmp_path / "runs").iterdir()
    ):  # it failed before the first round, so there is nothing to resume
        assert "continue with" not in log
        assert start(WORDS, tmp_path).ended() == 0
        assert files(run_of(tmp_path) / "checkpoints") == files(run_of(whole) / "checkpoints")
        return
    run, want = run_of(tmp_path), run_of(whole)
    committed = store.rounds(run / "checkpoints")
    for rnd in committed:
        store.load(store.round_folder(run / "checkpoints", rnd))
    assert [r["round"] for r in metrics_of(run)] == list(range(len(committed and range(committed[-1] + 1))))
    assert not committed or f"continue with: accord resume {run}" in log

    assert start({**WORDS, "run.resume": str(run)}, tmp_path).ended() == 0
    for folder in ("checkpoints", "adapter"):
        assert files(run / folder) == files(want / folder)
    assert metrics_of(run) == metrics_of(want)


@pytest.mark.parametrize("free_kib", [0, 16])
def test_a_full_disk_of_a_client_is_named_in_its_reply(whole, tmp_path, small_disk, free_kib):
    ballast = small_disk(tmp_path / "home-1", free_kib)
    assert start(WORDS, tmp_path).ended() == 1
    log = (tmp_path / "log").read_text()
    assert "cannot write" in log
    assert "No space left on device" in log
    ballast.unlink()
    begun = [str(run) for run in (tmp_path / "runs").iterdir()]  # empty if it failed before the first round
    settings = {**WORDS, "run.resume": begun[0]} if begun else WORDS
    assert start(settings, tmp_path).ended() == 0
    assert files(run_of(tmp_path) / "checkpoints") == files(run_of(whole) / "checkpoints")
