"""A whole federation as processes that cost a fork: the ServerApp's own main, clients that each are a process.

The server runs in a fork of a warm parent, over the loopback grid; every message is handled by the ClientApp in
a fork of its own, as Flower does it. Both watch what they do to files below the place they run in, so that
either can be killed at the n-th of these steps, or in the middle of the write that follows it.
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
STEPS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove")  # of Python's audit events
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.faults.warm"])


@dataclass(frozen=True)
class Step:
    """Something a process did to a file: the server is process 0, a client the number of its message."""

    process: int
    number: int
    what: str  # "train 2" for a process that starts, else "open a runs/.../metrics.jsonl"


@dataclass(frozen=True)
class Kill:
    """Where a process ends: before a step, or `torn` bytes into the first longer write after it."""

    step: Step
    torn: int | None = None


@dataclass
class Watch:
    """Counts the steps of this process below `place`, writes them down, and ends it at the one named."""

    place: str
    trace: int  # file descriptor; os.write is no step
    kill: Kill | None
    process: int = 0
    number: int = 0

    def begin(self, process: int, what: str) -> None:
        self.process, self.number = process, 0
        self.note(what)

    def note(self, what: str) -> None:
        os.write(self.trace, f"{self.process}\t{self.number}\t{what}\n".encode())

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
    """A federation under way: its server, and a pipe that all its processes hold open."""

    server: BaseProcess
    alive: Connection

    def kill(self, *, everything: bool) -> None:
        """The server alone, or its clients with it."""
        pid = self.server.pid
        assert pid
        os.killpg(pid, signal.SIGKILL) if everything else os.kill(pid, signal.SIGKILL)

    def ended(self, timeout_s: float = 300.0) -> int:
        """The server's exit code, when it and the clients that outlived it are gone."""
        assert self.alive.poll(timeout_s), "the federation hangs"
        self.server.join()
        assert self.server.exitcode is not None
        return self.server.exitcode


def start(
    words: Mapping[str, object], place: Path, *, kill: Kill | None = None, clients: int = CLIENTS
) -> Running:
    """A federation in a process group of its own; its lines go to place/log."""
    alive, held = FORKS.Pipe(duplex=False)
    server = FORKS.Process(target=_serve, args=(dict(words), place, kill, held, clients))
    server.start()
    held.close()
    return Running(server, alive)


def undisturbed(words: Mapping[str, object], place: Path, *, clients: int = CLIENTS) -> None:
    """A run to its end."""
    assert start(words, place, clients=clients).ended() == 0, (place / "log").read_text()


def whole(words: Sequence[str], place: Path) -> Path:
    """The folder of an undisturbed run; `words` as after `accord run`."""
    asked = request([*words])
    undisturbed(asked.keys, place, clients=int(asked.federation["num-supernodes"]))
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
    asked = 0

    def answer(node: int, message: Message) -> Message | None:
        nonlocal asked
        asked += 1
        return _in_a_fork(node - 10, clients, message, config, watch, asked)

    main(Loopback(range(10, 10 + clients), answer), Context(1, 1, {}, RecordDict(), config))


def _in_a_fork(
    client: int, clients: int, message: Message, config: dict, watch: Watch, asked: int
) -> Message | None:
    """The ClientApp's reply from a process of its own; None when that process died."""
    from client_app.main import app

    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)  # or it would wait for itself when the server dies
            watch.begin(asked, f"{message.metadata.message_type} {client}")
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
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return pickle.loads(said) if status == 0 else None


def steps(place: Path) -> list[Step]:
    """What the processes of the last run did, in order."""
    lines = [line.split("\t") for line in (place / "trace").read_text().splitlines()]
    return [Step(int(process), int(number), what) for process, number, what in lines]
