"""Run `accord check --brief` in a child process of `accord run`, while the SuperLink starts.

The child loads the base model, and its exit frees that memory.
"""

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
    """The check of a run in a child process, which writes to the stdout and stderr of this process."""

    process: subprocess.Popen[bytes]

    def has_refused(self) -> bool:
        """Whether the check has ended with the result that the run cannot start."""
        return bool(self.process.poll())

    def wait(self) -> int:
        """Wait for the exit code; 0 if the run can start."""
        code = self.process.wait()
        if code < 0:
            hint = "; does the model fit in this machine's memory?" if code == -signal.SIGKILL else ""
            typer.echo(f"accord: the check of this run was killed by signal {-code}{hint}", err=True)
        return 1 if code < 0 else code


@contextlib.contextmanager
def checking(request: Request, scratch: Path, env: Mapping[str, str]) -> Iterator[Check]:
    """Run the check during the block; at its end the process is killed if it still runs."""
    settings = scratch / "asked.toml"
    federation = {f"federation.{key}": value for key, value in request.federation.items()}
    settings.write_text(tomli_w.dumps({**request.keys, **federation}), encoding="utf-8")
    command = [sys.executable, str(ACCORD), "check", str(settings), "--brief"]
    process = subprocess.Popen(command, env=dict(env), stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
    try:
        yield Check(process)
    finally:
        process.kill()
        process.wait()
