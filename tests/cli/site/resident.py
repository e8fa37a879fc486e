"""A resident site as a real process, for tests: a folder, its SITE.toml, its socket."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import RecordDict

from client_app.relay import relay
from core.config import parse
from core.types import Scalar
from tests.federation.conftest import ROOT, wait_until

SMALL = {
    "data.rows-per-client": 12,
    "data.eval-rows-per-client": 6,
    "train.local-steps": 2,
    "site.wait-s": 60.0,  # a cold start of a site beside other tests
}


@dataclass
class Place:
    """Client 1 of 3, in a folder of its own."""

    path: Path
    text: str = 'address = "unix:s.sock"\npartition-id = 1\nnum-partitions = 3\nstate-dir = "home"\n'
    launcher: tuple[str, ...] = ()  # of several processes
    started: list[subprocess.Popen] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"unix:{self.path}/s.sock"

    @property
    def log(self) -> str:
        return (self.path / "log").read_text()

    def start(self, *words: str) -> subprocess.Popen:
        (self.path / "site.toml").write_text(self.text)
        program = [sys.executable, *self.launcher, str(ROOT / "accord")]
        command = [*program, "site", str(self.path / "site.toml"), *words]
        with (self.path / "log").open("ab") as log:
            self.started.append(subprocess.Popen(command, stdout=log, stderr=log))
        return self.started[-1]

    def ready(self, *words: str) -> subprocess.Popen:
        before = self.log.count(": ready") if (self.path / "log").exists() else 0
        process = self.start(*words)
        wait_until(lambda: self.log.count(": ready") > before or process.poll() is not None)
        return process

    def ask(self, kind: str, record: RecordDict, run: int = 5, **keys: Scalar) -> RecordDict:
        """As the ClientApp does, with every key filled in as Flower does."""
        flat = dict(
            parse({**SMALL, **{k.replace("__", ".").replace("_", "-"): v for k, v in keys.items()}}).flat
        )
        return relay(kind, record, run, flat, {"site": self.address})

    @contextlib.contextmanager
    def going(self) -> Iterator["Place"]:
        try:
            yield self
        finally:
            for process in self.started:
                process.send_signal(signal.SIGKILL)
                process.wait()
