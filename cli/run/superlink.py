"""Run a SuperLink for one simulation: on a free loopback port, stopped with all processes that it started."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import tomli_w

from cli.machine.environment import die_with_parent
from cli.machine.processes import BIN
from core.errors import ConfigError

START_S = 60.0
NAME = "accord"  # of the SuperLink in its FLWR_HOME
DIRECT = urllib.request.build_opener(
    urllib.request.ProxyHandler({})
)  # connects to the loopback without a proxy


@contextlib.contextmanager
def superlink(scratch: Path, env: Mapping[str, str], cancelled: Callable[[], bool]) -> Iterator[str]:
    """Run a SuperLink during the block and yield its name in FLWR_HOME.

    If `cancelled` returns True, yields without waiting for the SuperLink. Raises ConfigError if it does not start.
    """
    home = Path(env["FLWR_HOME"])
    home.mkdir()
    port = _free_port()
    link = {"address": f"127.0.0.1:{port}", "insecure": True}
    text = tomli_w.dumps({"superlink": {"default": NAME, NAME: link}})
    (home / "config.toml").write_text(text, encoding="utf-8")
    command = [str(BIN / "flower-superlink"), "--insecure", "--simulation"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with (scratch / "superlink.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    patience_s = 5.0
    with _reaped(home):
        try:
            _wait_healthy(process, port, scratch / "superlink.log", cancelled)
            yield NAME
            patience_s = 0.5  # the run is over: Ray has ended, and the SuperLink has no state to save
        finally:
            _stop(process, patience_s)


@contextlib.contextmanager
def _reaped(home: Path) -> Iterator[None]:
    """If this process is killed during the block, kill all processes with `home` as their FLWR_HOME (reaper.py)."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("reaper.py")), str(home), str(os.getsid(0))]
    reaper = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        assert reaper.stdin is not None
        reaper.stdin.close()
        reaper.wait()


def _wait_healthy(
    process: subprocess.Popen[bytes], port: int, log: Path, cancelled: Callable[[], bool]
) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            DIRECT.open(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return
        if cancelled():
            return
        time.sleep(0.1)
    failure = "ended" if process.poll() is not None else f"did not come up within {START_S:.0f} s"
    raise ConfigError(f"the SuperLink on 127.0.0.1:{port} {failure}: {_last_line(log)}; its log: {log}")


def _last_line(log: Path) -> str:
    """The last line that is not a stack frame, at most 200 characters."""
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines()]
    messages = [
        line for line in lines if re.match(r"[A-Za-z]", line) and not line.startswith(("File ", "Traceback"))
    ]
    return messages[-1][:200] if messages else "no reason given"


def _stop(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """Terminate a process and its descendants, and kill those that still run after `patience_s`."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not interrupt this
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.terminate()
        _, alive = psutil.wait_procs(family, timeout=patience_s)
        for member in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()
    signal.signal(signal.SIGINT, before)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
