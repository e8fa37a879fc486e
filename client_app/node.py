"""`accord node`: flower-supernode with the same arguments and less waiting; a program of its own, without our modules.

Of the seconds that Flower 1.39 adds to a message, this takes away what can be taken away from outside:
- looking for tasks every second: Flower's own setting FLWR_SUPEREXEC_TASK_POLL_INTERVAL;
- a new Python with Flower's imports for each message: the command `flwr-clientapp` that Flower finds on its PATH asks
  a process that has imported them to fork (client_app/zygote.py), and starts the real one where that fails;
- looking for messages every 3 s and for replies every 0.5 s: shorter sleeps in its loop. This alone touches Flower's
  inside: it is tied to 1.39, and left out with a warning elsewhere.
"""

import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

TASKS_S = "0.05"  # of FLWR_SUPEREXEC_TASK_POLL_INTERVAL
REPLY_S = 0.02  # a look into this process's own memory
LEAST_S = 0.05
SHARE = 0.02  # of the time since the last message: how long to sleep before asking the SuperLink again
LOOP = "flwr.supernode.start_client_internal"

SHIM = """#!{python} -IS
import os, socket, sys
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
    shorten_sleeps()
    os.environ.setdefault("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", TASKS_S)
    commands = Path(sys.executable).parent
    os.environ["PATH"] = f"{commands}{os.pathsep}{os.environ['PATH']}"
    sys.argv[0] = "flower-supernode"
    (start,) = metadata.entry_points(group="console_scripts", name="flower-supernode")
    with tempfile.TemporaryDirectory(prefix="accord-node-") as folder:  # 0700: nobody else reaches the socket
        zygote = fork_for_messages(Path(folder))
        try:
            start.load()()
        finally:
            zygote.terminate()


def fork_for_messages(folder: Path) -> subprocess.Popen[bytes]:
    """Start the process that forks, and put a `flwr-clientapp` that asks it first on PATH. It ends with this one."""
    socket, real = str(folder / "fork.sock"), shutil.which("flwr-clientapp")
    shim = folder / "flwr-clientapp"
    shim.write_text(SHIM.format(python=sys.executable, socket=socket, real=real))
    shim.chmod(0o700)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    script = Path(__file__).with_name("zygote.py")
    return subprocess.Popen(
        [sys.executable, "-P", str(script), socket, str(os.getpid())], stdin=subprocess.DEVNULL
    )


def shorten_sleeps() -> bool:
    """Put shorter sleeps into Flower's loop if it is the one that is known here; whether it was."""
    import flwr.supernode.start_client_internal as loop

    known = metadata.version("flwr").startswith("1.39.")
    used = re.findall(r"\btime\.\w+\([\d.]*\)", inspect.getsource(loop))
    if not known or used != ["time.sleep(3)", "time.sleep(0.5)", "time.sleep(0.5)"]:
        print(
            f"accord: {LOOP} of flwr {metadata.version('flwr')} is not known: it waits as it likes",
            file=sys.stderr,
        )
        return False
    loop.time = SimpleNamespace(sleep=Sleep())  # type: ignore[attr-defined]
    return True


class Sleep:
    """In place of time.sleep: short while there is work, and for a while after; never longer than asked for."""

    def __init__(self) -> None:
        self.busy = time.monotonic()  # when a reply was last waited for

    def __call__(self, seconds: float) -> None:
        now = time.monotonic()
        if seconds < 1:
            self.busy = now
            time.sleep(REPLY_S)
        else:
            time.sleep(min(seconds, max(LEAST_S, SHARE * (now - self.busy))))


if __name__ == "__main__":
    sys.path[0:1] = []  # not this folder: its modules are the app's, which Flower loads from elsewhere
    main()
