"""Kill the processes that a killed `accord run` leaves: `python reaper.py FLWR_HOME SESSION`.

Its stdin is a pipe from the run, which closes when the run ends, even by `kill -9`. Then every process with this
FLWR_HOME, which only this simulation uses, is killed. Without the reaper, Flower's processes would wait a minute for
their SuperLink and hold the run folder meanwhile, so that the run could not be resumed.
"""

import contextlib
import os
import sys

import psutil


def main() -> None:
    home, session = sys.argv[1], int(sys.argv[2])  # not by getppid(): the run may be dead before this line
    os.read(sys.stdin.fileno(), 1)  # returns when the pipe closes
    while members := simulation(home, session):
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(members, timeout=5)


def simulation(home: str, session: int) -> list[psutil.Process]:
    """The processes with `home` as their FLWR_HOME, and all processes in the sessions that they opened.

    Some of Ray's processes overwrite their environment with a title, but stay in their session.

    Args:
        home: The FLWR_HOME of the simulation.
        session: The session of `accord run`, which is the terminal's: only its marked processes are included.
    """
    processes = [p for p in psutil.process_iter() if p.pid != os.getpid()]
    marked = [p for p in processes if environment(p).get("FLWR_HOME") == home]
    opened = {session_of(p) for p in marked} - {session, None}
    return [p for p in processes if p in marked or session_of(p) in opened]


def environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):  # the process is another user's, or has ended
        return {}


def session_of(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


if __name__ == "__main__":
    main()
