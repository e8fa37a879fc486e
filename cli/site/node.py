"""`accord node`: flower-supernode with the same arguments and less waiting; a program without our modules.

Of the seconds that Flower 1.39 adds to a message, this takes away what can be taken away from outside:
- a new Python with Flower's imports for each message: the command `flwr-clientapp` that Flower finds on its PATH asks
  a process that has imported them to fork, and starts the real one where that fails;
- looking for messages every 3 s, for tasks every second and for replies every 0.5 s, and 1 s, 2 s, 4 s ... between two
  tries to fetch tensors that are still on their way: shorter sleeps, which grow with the silence;
- unpacking the app's bundle for each message: not where it lies unpacked already;
- waiting for ever for a ClientApp that died before it had fetched its message.
The last three (core/flower_patches.py) touch Flower's inside; what is not found as in 1.39 is left as it is, with a
warning.

Nothing of ours may be imported here: the app that Flower unpacks brings modules of the same names.
"""

import contextlib
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MOST = 1 << 16  # bytes of the words of a command line

TASKS = """#!/bin/sh
exec {python} -P {program} --tasks "$@"
"""
ASK = """#!/bin/sh
exec {python} -IS {program} "$@"
"""
ASKING = """import os, socket, sys
try:
    with socket.socket(socket.AF_UNIX) as line:
        line.connect({socket!r})
        socket.send_fds(line, ["\\0".join(sys.argv[1:]).encode()], [1, 2])
        if line.recv(2) == b"ok":
            sys.exit(0)
except OSError:
    pass
os.execv({real!r}, [{real!r}, *sys.argv[1:]])
"""


def main() -> None:
    """Run flower-supernode in this process with the words of the command line; it ends as that one ends."""
    waits = alone("core/flower_patches.py")
    missing = [
        what
        for what, done in (
            ("its loop", waits.shorten_loop()),
            ("its fetching", waits.shorten_tries()),
            ("its unpacking", waits.unpack_once()),
            ("a message whose ClientApp has died", waits.answer_for_the_dead()),
        )
        if not done
    ]
    if missing:
        warn(" and ".join(missing))
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    sys.argv[0] = "flower-supernode"
    # 0700, so that nobody else reaches the socket; its path is short, whatever TMPDIR is
    folder = alone("cli/machine/environment.py").short_folder("accord-node-", taken=len("/fork.sock"))
    try:
        forking = fork_for_messages(folder)
        try:
            command("flower-supernode")()
        finally:
            forking.terminate()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tasks() -> None:
    """Run flower-superexec, which the SuperNode starts to ask it for tasks."""
    if not alone("core/flower_patches.py").shorten_tasks():
        warn("its asking for tasks")
    sys.argv = ["flower-superexec", *sys.argv[2:]]
    command("flower-superexec")()


def warn(what: str) -> None:
    print(
        f"accord: flwr {metadata.version('flwr')} is not as 1.39: {what} waits as long as it likes",
        file=sys.stderr,
    )


def leave(run: Callable[[], Any]) -> None:
    """End this process as `run` ends, and at once: a refused SuperNode was seen to hang after its last line."""
    code: Any = 1
    try:
        code = run()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


def alone(path: str) -> SimpleNamespace:
    """What a module of ours defines, without its package in sys.modules."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / path)))


def command(name: str) -> Any:  # a function of flwr
    """What a console script of Flower runs."""
    (entry,) = metadata.entry_points(group="console_scripts", name=name)
    return entry.load()


# --- processes that are forked ----------------------------------------------------


def fork_for_messages(folder: Path) -> subprocess.Popen[bytes]:
    """Start the process that forks, and put a `flwr-clientapp` that asks it, and a `flower-superexec` that sleeps less,
    first on PATH. It ends with this one."""
    place, real = str(folder / "fork.sock"), shutil.which("flwr-clientapp")
    shim, superexec = folder / "flwr-clientapp", folder / "flower-superexec"
    asking, python = folder / "ask.py", shlex.quote(sys.executable)  # whose path may hold spaces
    asking.write_text(ASKING.format(socket=place, real=real), encoding="utf-8")
    shim.write_text(ASK.format(python=python, program=shlex.quote(str(asking))), encoding="utf-8")
    superexec.write_text(TASKS.format(python=python, program=shlex.quote(__file__)), encoding="utf-8")
    for program in (shim, superexec):
        program.chmod(0o700)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    words = [sys.executable, "-P", __file__, "--fork", place, str(os.getpid())]
    return subprocess.Popen(words, stdin=subprocess.DEVNULL)


def fork(place: str, parent: int) -> None:
    """Import what every ClientApp process needs; fork one for each asked for at `place`; end with the parent."""
    start = command("flwr-clientapp")
    import flwr.clientapp  # noqa: F401 - for the app
    import grpc  # noqa: F401 - for the relay

    waits = alone("core/flower_patches.py")
    waits.shorten_tries()
    waits.unpack_once()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children leave nothing behind
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place)
        server.listen()
        while os.getppid() == parent:
            if not select.select([server], [], [], 1.0)[0]:
                continue
            line, _ = server.accept()
            with line, contextlib.suppress(OSError):
                words, streams, *_ = socket.recv_fds(line, MOST, 2)
                if os.fork() == 0:
                    server.close()
                    line.close()
                    _become(words.decode().split("\0"), streams, start)
                line.sendall(b"ok")
                for stream in streams:
                    os.close(stream)


def _become(words: list[str], streams: list[int], start: Any) -> None:
    """In the child: what the console script flwr-clientapp does, writing where the one that asked would write."""

    def run() -> Any:
        for number in (signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        for number, stream in enumerate(streams, start=1):
            os.dup2(stream, number)
            os.close(stream)
        sys.argv = ["flwr-clientapp", *words]
        return start()

    leave(run)


if __name__ == "__main__":
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]
    if sys.argv[1:2] == ["--fork"]:
        fork(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["--tasks"]:
        leave(tasks)
    else:
        leave(main)
