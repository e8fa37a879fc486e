"""`flwr run --stream` as a child: its lines filtered, shown and kept, and how the run ended."""

import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import typer

from cli.machine.environment import die_with_parent
from cli.machine.processes import BIN
from cli.run.ray_failure import BEGINS

FOLDER = re.compile(r"results go to ([^\"\n]+)")  # of the plan, as text or as JSON
ANSI = re.compile(r"\x1b\[[0-9;]*m")
NOISE = re.compile(
    r"\s*(INFO|DEBUG|WARNING)\s*:|\((ClientAppActor|raylet|pid=)|Using SuperLink|Loading project"
    r"|Successfully (started|installed) |\d{4}-\d\d-\d\d [\d:,]+\s+(INFO|WARNING) "  # Ray's
)


@dataclass
class Stream:
    """`flwr run --stream` as a child: its lines are filtered, shown and kept."""

    log: Path
    asked_of_others: bool  # the SuperLink is not ours, and goes on with the run unless it is told to stop it
    verbose: bool
    run_id: str = ""
    folder: str = ""  # of the run, once it has said so
    told: bool = False  # whether the run itself said why it ended

    def follow(
        self, command: Sequence[str], env: Mapping[str, str], connection: str, checked: Callable[[], int]
    ) -> int:
        """Start it, wait for `checked`, show its lines as they come; how the run ended, as an exit code."""
        with self.log.open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                command,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                preexec_fn=die_with_parent,
            )
            assert process.stdout is not None
            try:
                if code := checked():
                    return code
                self._show(process.stdout, log)
                process.wait()
            except KeyboardInterrupt:
                if self.run_id and self.asked_of_others:
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
            if found := re.search(r"Successfully started run (\d+)", line):
                self.run_id = found[1]
            if found := FOLDER.search(line):
                self.folder = found[1]
            failing = failing or bool(BEGINS.search(line))  # the traceback that follows is put into a line
            ours = line.startswith("accord: ")
            noise = NOISE.match(ANSI.sub("", line)) or not (planned or line.strip()) or (failing and not ours)
            if self.verbose or not (self.told or noise):
                typer.echo(line, nl=False)
            planned = planned or line.startswith("plan ")  # from here on, blank lines are ours
            self.told = self.told or ours  # after the reason, Flower prints a traceback


def _stop_run(run_id: str, connection: str, env: Mapping[str, str]) -> None:
    """Tell the SuperLink, which would go on without whoever asked for the run. A second Ctrl-C must not stop this."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    command = [str(BIN / "flwr"), "stop", run_id, connection]
    done = subprocess.run(command, env=dict(env), capture_output=True, text=True, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    if done.returncode:
        typer.echo(
            f"accord: the SuperLink could not be told to stop run {run_id}; try: flwr stop {run_id} {connection}",
            err=True,
        )


def _status(run_id: str, connection: str, env: Mapping[str, str]) -> str:
    command = [str(BIN / "flwr"), "list", connection, "--run-id", run_id, "--format", "json"]
    done = subprocess.run(command, env=dict(env), capture_output=True, text=True, check=False)
    try:
        return str(json.loads(done.stdout)["runs"][0]["status"])
    except (ValueError, KeyError, IndexError):
        return f"unknown: {done.stdout or done.stderr}"
