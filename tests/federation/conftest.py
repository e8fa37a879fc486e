"""Fixtures that run real processes: `flwr run`, SuperLink, SuperNodes, Ray. Each test has its own folders and ports."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.paths import ROOT
from tests.shared import once

BIN = Path(sys.executable).parent
ROUGH = {  # variables of a shell that must not break any command of Accord
    "http_proxy": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "ALL_PROXY": "socks5://127.0.0.1:9",
    "RAY_ADDRESS": "127.0.0.1:9",
    "LC_ALL": "C",
}
SMALL = [
    "run.num-server-rounds=3",
    "train.local-steps=3",
    "data.rows-per-client=16",
    "data.eval-rows-per-client=8",
    "federation.num-supernodes=3",
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Place:
    """A temporary folder in which federations run: its environment, its runs, the processes started there."""

    path: Path
    env: dict[str, str]
    started: list[subprocess.Popen] = field(default_factory=list)

    def start(self, *command: str, log: str = "out.log", **env: str) -> subprocess.Popen:
        with (self.path / log).open("ab") as out:
            process = subprocess.Popen(
                command,
                cwd=self.path,
                env={**self.env, **env},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def accord(
        self, *arguments: str, timeout: float = 240, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "accord"), *arguments]
        env = {**self.env, **ROUGH}
        process = subprocess.run(
            command, cwd=self.path, env=env, capture_output=True, text=True, timeout=timeout
        )
        assert not check or process.returncode == 0, process.stdout + process.stderr
        return process

    def runs(self) -> list[Path]:
        return sorted((self.path / "runs").iterdir())

    def alive(self) -> list[psutil.Process]:
        """The running processes that have this place's environment, including orphaned ones."""
        return [p for p in psutil.process_iter() if home_of(p) == self.env["ACCORD_HOME"]]

    def end(self) -> None:
        for process in self.started:
            kill_tree(process.pid)


def kill_tree(pid: int) -> None:
    """kill -9 a process and its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def home_of(process: psutil.Process) -> str:
    """ACCORD_HOME of a process; "" if the process has ended or cannot be read."""
    with contextlib.suppress(psutil.Error):
        return process.environ().get("ACCORD_HOME", "")
    return ""


def wait_until(condition, timeout_s: float = 60.0) -> None:
    """Poll until condition() is true; raises AssertionError after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{condition} did not become true within {timeout_s} s"
        time.sleep(0.05)


def healthy(port: int) -> bool:
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).status == 200
    return False


def timeless(record):
    """A metrics record without the values that depend on clock and processes.

    These are seconds, loads, and bytes, because messages hold seconds as text.
    """
    if isinstance(record, dict):
        return {k: timeless(v) for k, v in record.items() if not k.startswith(("seconds", "bytes", "loads"))}
    return record


def metrics_of(run: Path) -> list:
    return [timeless(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]


@dataclass(frozen=True)
class Finished:
    """A finished run that several tests read; a test that writes to its folder takes a copy."""

    place: Place
    stdout: str

    @property
    def run(self) -> Path:
        (run,) = self.place.runs()
        return run

    def copy(self, place: Place) -> Path:
        return Path(shutil.copytree(self.run, place.path / self.run.name))


def environment(path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(path / "flwr"),
        "ACCORD_HOME": str(path / "accord"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path, environment(tmp_path))
    yield place
    place.end()


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Callable[..., Finished]:
    """A function that runs `accord run ARGUMENTS`, once per session for the same arguments, shared by all processes."""

    def get(*arguments: str) -> Finished:
        def make(folder: Path) -> None:
            stdout = Place(folder, environment(folder)).accord("run", *arguments).stdout
            (folder / "stdout.txt").write_text(stdout)

        name = f"run-{hashlib.sha256(repr(arguments).encode()).hexdigest()[:12]}"
        folder = once(tmp_path_factory, name, make)
        return Finished(Place(folder, environment(folder)), (folder / "stdout.txt").read_text())

    return get
