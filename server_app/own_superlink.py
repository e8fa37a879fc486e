"""A SuperLink of one simulation's own: on a free loopback port, stopped with everything that it started."""

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

from core.errors import ConfigError
from core.processes import BIN
from core.surroundings import die_with_parent

START_S = 60.0
NAME = "accord"  # in its FLWR_HOME
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the loopback, whatever proxy there is


@contextlib.contextmanager
def superlink(scratch: Path, env: Mapping[str, str], given_up: Callable[[], bool]) -> Iterator[str]:
    """Inside, a SuperLink is up whose name in FLWR_HOME this is; or it is not waited for, since the run is given up."""
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
            _wait_healthy(process, port, scratch / "superlink.log", given_up)
            yield NAME
            patience_s = 0.5  # the run is over: Ray has ended, and the SuperLink keeps nothing
        finally:
            _stop(process, patience_s)


@contextlib.contextmanager
def _reaped(home: Path) -> Iterator[None]:
    """If this process is killed inside, so are all that have home as their FLWR_HOME."""
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
    process: subprocess.Popen[bytes], port: int, log: Path, given_up: Callable[[], bool]
) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            DIRECT.open(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return
        if given_up():
            return
        time.sleep(0.1)
    what = "ended" if process.poll() is not None else f"did not come up within {START_S:.0f} s"
    raise ConfigError(f"the SuperLink on 127.0.0.1:{port} {what}: {_last_line(log)}; its log: {log}")


def _last_line(log: Path) -> str:
    """The last line that is no stack frame, on one line."""
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines()]
    words = [
        line for line in lines if re.match(r"[A-Za-z]", line) and not line.startswith(("File ", "Traceback"))
    ]
    return words[-1][:200] if words else "it left no reason"


def _stop(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """End a process and all its descendants: politely, then for good. A second Ctrl-C must not stop this."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
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
