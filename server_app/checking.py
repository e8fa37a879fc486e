"""`accord check --brief` as a child of `accord run`, at work while the SuperLink starts; its model ends with it."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import tomli_w
import typer

from core.surroundings import die_with_parent
from server_app.words import ROOT, Request


@contextlib.contextmanager
def checking(asked: Request, scratch: Path, env: Mapping[str, str]) -> Iterator[Callable[[], int]]:
    """Inside, the check runs; the function waits for it and gives its exit code, 0 for a run that can start.

    What the check says goes to this process's own stdout and stderr.
    """
    words = scratch / "asked.toml"
    federation = {f"federation.{key}": value for key, value in asked.federation.items()}
    words.write_text(tomli_w.dumps({**asked.keys, **federation}), encoding="utf-8")
    command = [sys.executable, str(ROOT / "accord.py"), "check", str(words), "--brief"]
    process = subprocess.Popen(command, env=dict(env), stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)

    def wait() -> int:
        code = process.wait()
        if code < 0:
            typer.echo(
                f"accord: the check of this run was ended by signal {-code}"
                + ("; does the model fit in this machine's memory?" if code == -9 else ""),
                err=True,
            )
        return 1 if code < 0 else code

    try:
        yield wait
    finally:
        process.kill()
        process.wait()
