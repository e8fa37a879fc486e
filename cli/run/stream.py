"""Run `flwr run --stream` as a child process: log and filter its output, and report how the run ended."""

import contextlib
import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import typer

from cli.machine.processes import BIN, start_piped
from cli.run.ray_failure import BEGINS

FOLDER = re.compile(r"results go to ([^\"\n]+)")  # a line of the plan, as text or as JSON
STOP_TIMEOUT_S = 30.0  # of `flwr stop`
ANSI = re.compile(r"\x1b\[[0-9;]*m")
NOISE = re.compile(
    r"\s*(INFO|DEBUG|WARNING)\s*:|\((ClientAppActor|raylet|pid=)|Using SuperLink|Loading project"
    r"|Successfully (started|installed) |\d{4}-\d\d-\d\d [\d:,]+\s+(INFO|WARNING) "  # a line of Ray
)


@dataclass
class Stream:
    """The output of `flwr run --stream`, which is filtered for the terminal and logged in full."""

    log: Path
    is_deployment: bool  # its SuperLink outlives this process, and continues the run until `flwr stop`
    verbose: bool
    run_id: str = ""
    folder: str = ""  # the run folder, once the plan names it
    has_reason: bool = False  # whether the run itself printed why it failed

    def follow(
        self, command: Sequence[str], env: Mapping[str, str], connection: str, checked: Callable[[], int]
    ) -> int:
        """Start `command`, print its output as it comes, and return the exit code of the run: 0 if it completed.

        `checked` waits for the check of the run; if its exit code is not 0, that code is returned at once.
        """
        with self.log.open("w", encoding="utf-8") as log:
            process = start_piped(command, env)
            assert process.stdout is not None
            try:
                if code := checked():
                    return code
                self._show(process.stdout, log)
                process.wait()
            except KeyboardInterrupt:
                if self.run_id and self.is_deployment:
                    _stop_run(self.run_id, connection, env)
                raise
            finally:
                process.kill()
                process.wait()
        if not self.run_id:
            return 1
        return 0 if _status(self.run_id, connection, env) == "finished:completed" else 1

    def _show(self, lines: Iterable[str], log: IO[str]) -> None:
        planned = failing = False
        for line in lines:
            log.write(line)
            log.flush()
            if match := re.search(r"Successfully started run (\d+)", line):
                self.run_id = match[1]
            if match := FOLDER.search(line):
                self.folder = match[1]
            # the traceback that follows is only logged; simulation_failure() makes one line of it
            failing = failing or bool(BEGINS.search(line))
            ours = line.startswith("accord: ")
            noise = NOISE.match(ANSI.sub("", line)) or not (planned or line.strip()) or (failing and not ours)
            if self.verbose or not (self.has_reason or noise):
                typer.echo(line, nl=False)
            planned = planned or line.startswith("plan ")  # from here on, blank lines are part of our output
            self.has_reason = self.has_reason or ours  # after the reason, Flower prints a traceback


def _stop_run(run_id: str, connection: str, env: Mapping[str, str]) -> None:
    """Ask the SuperLink of a deployment to stop a run, which it would otherwise continue."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not interrupt this
    command = [str(BIN / "flwr"), "stop", run_id, connection]
    stopped = False
    with contextlib.suppress(subprocess.TimeoutExpired):  # the SuperLink may be out of reach
        stop = subprocess.run(
            command, env=dict(env), capture_output=True, start_new_session=True, timeout=STOP_TIMEOUT_S
        )
        stopped = stop.returncode == 0
    signal.signal(signal.SIGINT, before)
    if not stopped:
        typer.echo(
            f"accord: the SuperLink did not stop run {run_id}; try: flwr stop {run_id} {connection}",
            err=True,
        )


def _status(run_id: str, connection: str, env: Mapping[str, str]) -> str:
    command = [str(BIN / "flwr"), "list", connection, "--run-id", run_id, "--format", "json"]
    listing = subprocess.run(command, env=dict(env), capture_output=True, text=True, check=False)
    try:
        return str(json.loads(listing.stdout)["runs"][0]["status"])
    except (ValueError, KeyError, IndexError):
        return f"unknown: {listing.stdout or listing.stderr}"
