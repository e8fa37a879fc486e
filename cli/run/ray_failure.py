"""Why a simulation's Ray did not start, as one line with advice in place of the tracebacks that Flower prints."""

import re
from pathlib import Path

BEGINS = re.compile(r"An exception occurr?ed ?!!")  # Flower's words before its tracebacks
RAISED = re.compile(r"^(?:[A-Za-z_]\w*\.)*(\w*(?:Error|Exception|Timeout|Exit)): (.+)$", re.M)
RAYS_OWN = "raybackend.py"  # a frame of a traceback: Flower's backend was starting Ray or its actors
LOGS = ("raylet.err", "raylet.out", "gcs_server.err", "gcs_server.out")
TAIL = 20_000  # characters of a log
ADVICE = (  # the first whose words are in the stream or in Ray's logs
    (r"AF_UNIX path|path length", "set TMPDIR to a folder with a short path"),
    (r"No space left|ENOSPC|out of disk", "free disk space, or set TMPDIR to a folder on another disk"),
    (r"Too many open files|EMFILE", "raise the limit of open files (ulimit -n)"),
    (r"can't start new thread|temporarily unavailable|pthread_create", "raise the limit of processes (ulimit -u)"),
    (r"Cannot allocate memory|MemoryError|std::bad_alloc|out of memory", "free memory, or raise its limit (ulimit -v)"),
    (r"Bus error|SIGBUS", "give /dev/shm more room (docker run --shm-size)"),
    (r"Permission denied|Read-only file system", "set TMPDIR to a folder that can be written"),
    (
        r"timed out|Timeout|GCS",
        "a busy machine can be too slow for it: try again; else see whether limits of this shell (ulimit -a) stop it",
    ),
)  # fmt: skip


def simulation_failure(stream: Path) -> str:
    """What kept a simulation from starting, by the log stream of its run; "" where Flower reports no exception."""
    text = stream.read_text("utf-8", errors="replace") if stream.is_file() else ""
    begins = BEGINS.search(text)
    if not begins:
        return ""
    text = text[begins.start() :]
    raised = RAISED.search(text)
    reason = " ".join(raised[2].split())[:200] if raised else "it left no reason"
    if RAYS_OWN not in text:
        return f"the simulation ended: {raised[1] if raised else 'an exception'}: {reason}"
    clues = text + "".join(map(_tail, sorted((stream.parent / "ray").glob("session_2*/logs/*"))))
    advice = next((words for pattern, words in ADVICE if re.search(pattern, clues)), "")
    return f"Ray, which runs the simulated clients, did not start: {reason.rstrip('.')}" + (
        f"; {advice}" if advice else ""
    )


def _tail(log: Path) -> str:
    return log.read_text("utf-8", errors="replace")[-TAIL:] if log.name in LOGS and log.is_file() else ""
