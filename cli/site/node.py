"""`accord node`: run flower-supernode with the same arguments and less waiting.

It removes most of the seconds that Flower 1.39 adds to each message:
- Flower starts a new Python with all its imports for each message. Here the command `flwr-clientapp` on PATH asks a
  process that has imported them already to fork, and starts the real one if that fails.
- Flower looks for messages every 3 s, for tasks every second and for replies every 0.5 s, and waits 1 s, 2 s, 4 s ...
  between attempts to fetch tensors that are still on their way. Here the sleeps are shorter and grow with idle time.
- Flower unpacks the app's bundle for each message. Here it is unpacked once.
- Flower waits for ever for a ClientApp that died before it fetched its message. Here such a message fails.
The last three (core/flower_patches.py) patch Flower's internals; another version is left alone, with a warning.

This program must not import Accord's modules: the app that Flower unpacks brings modules of the same names.
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

MAX_ARGUMENT_BYTES = 1 << 16  # of a command line

SUPEREXEC_SCRIPT = """#!/bin/sh
exec {python} -P {program} --tasks "$@"
"""
CLIENTAPP_SCRIPT = """#!/bin/sh
exec {python} -IS {program} "$@"
"""
FORK_REQUEST_SCRIPT = """import os, socket, sys
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
    """Run flower-supernode in this process with the command line's arguments and its exit status."""
    patches = load_module("core/flower_patches.py")
    patches.apply(patches.SUPERNODE)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    sys.argv[0] = "flower-supernode"
    # mode 0700, so that no other user reaches the socket; a short path, as those of unix sockets are limited
    folder = load_module("cli/machine/environment.py").short_folder("accord-node-", taken=len("/fork.sock"))
    try:
        fork_server = start_fork_server(folder)
        try:
            command("flower-supernode")()
        finally:
            fork_server.terminate()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tasks() -> None:
    """Run flower-superexec, which the SuperNode starts and which polls it for tasks."""
    patches = load_module("core/flower_patches.py")
    patches.apply(patches.SUPEREXEC)
    sys.argv = ["flower-superexec", *sys.argv[2:]]
    command("flower-superexec")()


def exit_with(run: Callable[[], Any]) -> None:
    """Call `run` and end this process at once with its status: a refused SuperNode can hang after its last line."""
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


def load_module(path: str) -> SimpleNamespace:
    """Return what a module of Accord defines, without putting its package into sys.modules."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / path)))


def command(name: str) -> Any:  # a function of flwr
    """Return the function that a console script of Flower runs."""
    (entry,) = metadata.entry_points(group="console_scripts", name=name)
    return entry.load()


# --- the fork server --------------------------------------------------------------


def start_fork_server(folder: Path) -> subprocess.Popen[bytes]:
    """Start the process that forks ClientApps; it ends with this one.

    Puts two commands first on PATH: a `flwr-clientapp` that asks it to fork, and a `flower-superexec` that sleeps less.
    """
    address, real = str(folder / "fork.sock"), shutil.which("flwr-clientapp")
    clientapp, superexec = folder / "flwr-clientapp", folder / "flower-superexec"
    request, python = folder / "ask.py", shlex.quote(sys.executable)  # its path may hold spaces
    request.write_text(FORK_REQUEST_SCRIPT.format(socket=address, real=real), encoding="utf-8")
    clientapp.write_text(
        CLIENTAPP_SCRIPT.format(python=python, program=shlex.quote(str(request))), encoding="utf-8"
    )
    superexec.write_text(
        SUPEREXEC_SCRIPT.format(python=python, program=shlex.quote(__file__)), encoding="utf-8"
    )
    for program in (clientapp, superexec):
        program.chmod(0o700)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    command_line = [sys.executable, "-P", __file__, "--fork", address, str(os.getpid())]
    return subprocess.Popen(command_line, stdin=subprocess.DEVNULL)


def fork(address: str, parent: int) -> None:
    """Import what every ClientApp needs and fork a process for each request at `address`; end with the parent."""
    start = command("flwr-clientapp")
    import flwr.clientapp  # noqa: F401 - for the app
    import grpc  # noqa: F401 - for the relay

    patches = load_module("core/flower_patches.py")
    for patch in patches.CLIENTAPP:
        patch()  # the SuperNode has reported those that cannot be made
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children must not become zombies
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        while os.getppid() == parent:
            if not select.select([server], [], [], 1.0)[0]:
                continue
            line, _ = server.accept()
            with line, contextlib.suppress(OSError):
                arguments, streams, *_ = socket.recv_fds(line, MAX_ARGUMENT_BYTES, 2)
                if os.fork() == 0:
                    server.close()
                    line.close()
                    _run_clientapp(arguments.decode().split("\0"), streams, start)
                line.sendall(b"ok")
                for stream in streams:
                    os.close(stream)


def _run_clientapp(arguments: list[str], streams: list[int], start: Any) -> None:
    """In the forked child: run the console script flwr-clientapp with the output streams of the process that asked."""

    def run() -> Any:
        for number in (signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        for number, stream in enumerate(streams, start=1):
            os.dup2(stream, number)
            os.close(stream)
        sys.argv = ["flwr-clientapp", *arguments]
        return start()

    exit_with(run)


if __name__ == "__main__":
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]
    if sys.argv[1:2] == ["--fork"]:
        fork(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["--tasks"]:
        exit_with(tasks)
    else:
        exit_with(main)
