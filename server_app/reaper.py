"""End what a killed `accord run` leaves behind: `python reaper.py FLWR_HOME SESSION`, its stdin a pipe from the run.

The pipe closes when the run ends, however it ends, `kill -9` included. Whatever still runs with this FLWR_HOME in its
environment, which is the simulation's own, is then killed: Flower would wait a minute for its SuperLink, and until then
hold the run folder, so that it could not be resumed.
"""

import contextlib
import os
import sys

import psutil


def main() -> None:
    home, session = sys.argv[1], int(sys.argv[2])  # not by getppid(): the run may be dead before this line
    os.read(sys.stdin.fileno(), 1)
    while members := simulation(home, session):
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(members, timeout=5)


def simulation(home: str, session: int) -> list[psutil.Process]:
    """The processes that have home as their FLWR_HOME, and all of the sessions that they opened.

    Some of Ray's processes overwrite their environment with a title, but stay in their session.

    Args:
        session: The session that `accord run` belongs to, the terminal's, of which only the marked processes end.
    """
    processes = [p for p in psutil.process_iter() if p.pid != os.getpid()]
    marked = [p for p in processes if environment(p).get("FLWR_HOME") == home]
    opened = {session_of(p) for p in marked} - {session, None}
    return [p for p in processes if p in marked or session_of(p) in opened]


def environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):  # of another user, or gone
        return {}


def session_of(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


if __name__ == "__main__":
    main()
