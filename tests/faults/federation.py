"""A whole federation in forked processes: the ServerApp's main, and the ClientApp in a process per message.

The server runs in a fork of a parent that has imported everything, over the loopback grid. The ClientApp handles every
message in its own fork, as in Flower. Both record what they do to files below their folder, so that either can be
killed at the n-th of these steps, or in the middle of the write that follows it.
"""

import multiprocessing
import os
import pickle
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from flwr.app import Context, Message, RecordDict

from cli.run.request import request
from tests.loopback import Loopback

CLIENTS = 3
STEPS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove")  # names of Python's audit events
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.faults.warm"])


@dataclass(frozen=True)
class Step:
    """An action of a process on a file. The server is process 0, a client has the number of its message."""

    process: int
    number: int
    action: str  # "train 2" when a process starts, else such as "open a runs/.../metrics.jsonl"


@dataclass(frozen=True)
class Kill:
    """Where a process is killed: before a step, or after `torn` bytes of the first longer write that follows it."""

    step: Step
    torn: int | None = None


@dataclass
class Watch:
    """An audit hook that records the steps of this process below `place` and kills it at a given step."""

    place: str
    trace: int  # file descriptor; os.write is not a step
    kill: Kill | None
    process: int = 0
    number: int = 0

    def begin(self, process: int, action: str) -> None:
        self.process, self.number = process, 0
        self.note(action)

    def note(self, action: str) -> None:
        os.write(self.trace, f"{self.process}\t{self.number}\t{action}\n".encode())

    def __call__(self, event: str, args: tuple) -> None:
        path = str(args[0]) if event in STEPS else ""
        if not path.startswith(self.place):
            return
        self.number += 1
        mode = f" {args[1][0]}" if event == "open" and args[1] else ""
        self.note(f"{event}{mode} {path[len(self.place) + 1 :]}")
        kill = self.kill
        if kill is None or (kill.step.process, kill.step.number) != (self.process, self.number):
            return
        if kill.torn is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:  # the kernel ends the process in the write that passes the limit
            size = kill.torn + (os.stat(path).st_size if mode == " a" else 0)
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@dataclass(frozen=True)
class Running:
    """A running federation: its server, and a pipe that all its processes hold open."""

    server: BaseProcess
    alive: Connection

    def kill(self, *, everything: bool) -> None:
        """Kill the server, and if `everything`, its clients as well."""
        pid = self.server.pid
        assert pid
        os.killpg(pid, signal.SIGKILL) if everything else os.kill(pid, signal.SIGKILL)

    def ended(self, timeout_s: float = 300.0) -> int:
        """Wait until the server and all clients have ended; returns the server's exit code."""
        assert self.alive.poll(timeout_s), "the federation hangs"
        self.server.join()
        assert self.server.exitcode is not None
        return self.server.exitcode


def start(
    words: Mapping[str, object], place: Path, *, kill: Kill | None = None, clients: int = CLIENTS
) -> Running:
    """Start a federation in its own process group; its output goes to place/log."""
    alive, held = FORKS.Pipe(duplex=False)
    server = FORKS.Process(target=_serve, args=(dict(words), place, kill, held, clients))
    server.start()
    held.close()
    return Running(server, alive)


def undisturbed(words: Mapping[str, object], place: Path, *, clients: int = CLIENTS) -> None:
    """Do a run to its end and require that it succeeds."""
    assert start(words, place, clients=clients).ended() == 0, (place / "log").read_text()


def whole(words: Sequence[str], place: Path) -> Path:
    """Do an undisturbed run with the arguments of `accord run`; returns its folder."""
    run_request = request([*words])
    undisturbed(run_request.keys, place, clients=int(run_request.federation["num-supernodes"]))
    return run_of(place)


def run_of(place: Path) -> Path:
    (run,) = (place / "runs").iterdir()
    return run


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _serve(words: dict, place: Path, kill: Kill | None, held: Connection, clients: int) -> None:
    from server_app.main import main

    os.setpgid(0, 0)
    place.mkdir(parents=True, exist_ok=True)
    log = os.open(place / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    watch = Watch(
        str(place), os.open(place / "trace", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), kill
    )
    sys.addaudithook(watch)
    config = {"run.dir": str(place / "runs"), **words}
    messages = 0

    def answer(node: int, message: Message) -> Message | None:
        nonlocal messages
        messages += 1
        return _in_a_fork(node - 10, clients, message, config, watch, messages)

    main(Loopback(range(10, 10 + clients), answer), Context(1, 1, {}, RecordDict(), config))


def _in_a_fork(
    client: int, clients: int, message: Message, config: dict, watch: Watch, number: int
) -> Message | None:
    """The reply of a ClientApp in a forked process; None if that process died."""
    from client_app.main import app

    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)  # otherwise it would wait for itself when the server dies
            watch.begin(number, f"{message.metadata.message_type} {client}")
            home = f"{watch.place}/home-{client}"
            node = {"partition-id": client, "num-partitions": clients, "state-dir": home}
            reply = app(message, Context(1, 10 + client, node, RecordDict(), config))
            with os.fdopen(write, "wb") as pipe:
                pickle.dump(reply, pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    return pickle.loads(data) if status == 0 else None


def steps(place: Path) -> list[Step]:
    """The steps of the processes of the last run, in order."""
    lines = [line.split("\t") for line in (place / "trace").read_text().splitlines()]
    return [Step(int(process), int(number), action) for process, number, action in lines]
