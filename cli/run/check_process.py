"""`accord check --brief` as a child of `accord run`, at work while the SuperLink starts; its model ends with it."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import tomli_w
import typer

from cli.machine.environment import die_with_parent
from cli.machine.processes import ACCORD
from cli.run.request import Request


@dataclass(frozen=True)
class Check:
    """The check of a run, at work in a child. What it says goes to this process's own stdout and stderr."""

    process: subprocess.Popen[bytes]

    def has_refused(self) -> bool:
        """Whether it has ended, and the run cannot start."""
        return bool(self.process.poll())

    def wait(self) -> int:
        """Its exit code: 0 for a run that can start."""
        code = self.process.wait()
        if code < 0:
            hint = "; does the model fit in this machine's memory?" if code == -signal.SIGKILL else ""
            typer.echo(f"accord: the check of this run was ended by signal {-code}{hint}", err=True)
        return 1 if code < 0 else code


@contextlib.contextmanager
def checking(asked: Request, scratch: Path, env: Mapping[str, str]) -> Iterator[Check]:
    """Inside, the check runs; it ends with the block."""
    words = scratch / "asked.toml"
    federation = {f"federation.{key}": value for key, value in asked.federation.items()}
    words.write_text(tomli_w.dumps({**asked.keys, **federation}), encoding="utf-8")
    command = [sys.executable, str(ACCORD), "check", str(words), "--brief"]
    process = subprocess.Popen(command, env=dict(env), stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
    try:
        yield Check(process)
    finally:
        process.kill()
        process.wait()
