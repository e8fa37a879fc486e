"""What a killed run leaves behind ends with the pipe to the reaper, and nothing else does."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cli.run import reaper


def start(script: str, home: Path) -> subprocess.Popen[bytes]:
    env = {**os.environ, "FLWR_HOME": str(home)}
    return subprocess.Popen(
        ["sh", "-c", script],
        env=env,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[dict[str, psutil.Process]]:
    """Of a simulation, of its session but without its environment, and of another simulation."""
    ours = start("env -i /bin/sleep 60 & echo $!; sleep 60", tmp_path / "ours")
    theirs = start("echo; sleep 60", tmp_path / "theirs")
    assert ours.stdout is not None
    assert theirs.stdout is not None
    theirs.stdout.readline()
    nameless = psutil.Process(int(ours.stdout.readline()))
    yield {"marked": psutil.Process(ours.pid), "nameless": nameless, "other": psutil.Process(theirs.pid)}
    for process in (ours, theirs):
        os.killpg(process.pid, 9) if process.poll() is None else None
        process.wait()


def test_all_of_a_simulation_ends_with_its_run(processes: dict[str, psutil.Process], tmp_path: Path) -> None:
    command = [sys.executable, reaper.__file__, str(tmp_path / "ours"), str(os.getsid(0))]
    watch = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert all(process.is_running() for process in processes.values())
    watch.communicate(timeout=20)  # closes the pipe, as the end of the run does
    alive = {
        name
        for name, process in processes.items()
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    }
    assert alive == {"other"}
    assert watch.returncode == 0
