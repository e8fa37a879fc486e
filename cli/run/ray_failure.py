"""Explain on one line, with advice, why a simulation or its Ray did not start, instead of Flower's tracebacks."""

import re
from pathlib import Path

BEGINS = re.compile(r"An exception occurr?ed ?!!")  # Flower prints this before its tracebacks
RAISED = re.compile(r"^(?:[A-Za-z_]\w*\.)*(\w*(?:Error|Exception|Timeout|Exit)): (.+)$", re.M)
RAY_BACKEND = "raybackend.py"  # in a traceback: Flower's backend was starting Ray or its actors
LOGS = ("raylet.err", "raylet.out", "gcs_server.err", "gcs_server.out")
TAIL = 20_000  # characters read from the end of a log
ADVICE = (  # the first whose pattern matches the stream or Ray's logs applies
    (r"AF_UNIX path|path length", "set TMPDIR to a folder with a short path"),
    (r"No space left|ENOSPC|out of disk", "free disk space, or set TMPDIR to a folder on another disk"),
    (r"Too many open files|EMFILE", "raise the limit of open files (ulimit -n)"),
    (r"can't start new thread|temporarily unavailable|pthread_create", "raise the limit of processes (ulimit -u)"),
    (r"Cannot allocate memory|MemoryError|std::bad_alloc|out of memory", "free memory, or raise its limit (ulimit -v)"),
    (r"Bus error|SIGBUS", "give /dev/shm more room (docker run --shm-size)"),
    (r"Permission denied|Read-only file system", "set TMPDIR to a folder that can be written"),
    (
        r"timed out|Timeout|GCS",
        "this machine may be too busy: try again; if it fails again, check the limits of this shell (ulimit -a)",
    ),
)  # fmt: skip


def simulation_failure(stream: Path) -> str:
    """Why a simulation did not start, from the log of its run; "" if the log has no exception of Flower's."""
    text = stream.read_text("utf-8", errors="replace") if stream.is_file() else ""
    begins = BEGINS.search(text)
    if not begins:
        return ""
    text = text[begins.start() :]
    raised = RAISED.search(text)
    reason = " ".join(raised[2].split())[:200] if raised else "no reason given"
    if RAY_BACKEND not in text:
        return f"the simulation ended: {raised[1] if raised else 'an exception'}: {reason}"
    clues = text + "".join(map(_tail, sorted((stream.parent / "ray").glob("session_2*/logs/*"))))
    advice = next((hint for pattern, hint in ADVICE if re.search(pattern, clues)), "")
    return f"Ray, which runs the simulated clients, did not start: {reason.rstrip('.')}" + (
        f"; {advice}" if advice else ""
    )


def _tail(log: Path) -> str:
    return log.read_text("utf-8", errors="replace")[-TAIL:] if log.name in LOGS and log.is_file() else ""
