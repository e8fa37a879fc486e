"""The resident site process: it holds rows, base model and caches, and answers the relay one message at a time.

gRPC's threads only queue messages; the main thread does the work, so that a signal can end it.
"""

import fcntl
import hmac
import json
import logging
import os
import queue
import signal
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from cli.machine.signals import raise_on_signals
from cli.site import telemetry
from cli.site.policy.guard import GuardedSite
from cli.site.policy.rules import Policy
from cli.site.site_file import SiteFile
from client_app import handle as client_messages
from client_app.claim import Claim
from client_app.failures import unexpected_failure
from client_app.handle import KINDS, Guard, Request
from client_app.node import Node
from client_app.relay import FORMAT, METHOD, TOKEN
from client_app.workers import END, follow
from core import __version__, caches
from core.caches import Holds
from core.errors import AccordError, ConfigError, FrameError, SiteError
from core.framing import FACTS, Failure, RecordDict, encode_failure, pack, unpack
from core.sections import Config
from tasks.forward import processes, setup

log = logging.getLogger(__name__)

MAX_QUEUED = 8  # enough for the messages of two runs and those that are sent again
GRACE_S = 3.0  # for answers that are being sent at shutdown
MIB = 1 << 20


class Stop(BaseException):
    """SIGTERM or SIGINT. A BaseException, so that no `except Exception` on the way catches it."""


@dataclass(eq=False)
class Job:
    """A queued message."""

    data: bytes
    is_wanted: Callable[[], bool]  # whether the relay still waits for the answer
    answer: Future[bytes] = field(default_factory=Future)


@dataclass(eq=False)
class Service:
    """Answers queued messages. It remembers which run and base model are in memory, to free them when they change."""

    site: SiteFile
    guard: Guard
    jobs: queue.SimpleQueue[Job] = field(default_factory=queue.SimpleQueue)
    run: str = ""  # id of the run whose rows and tokens are in memory
    base: tuple[object, ...] = ()  # the settings of the base model in memory

    def serve(self) -> None:
        """Answer messages until Stop; those still queued then get a failure."""
        job = None
        try:
            while True:
                try:
                    job = self.jobs.get(timeout=self.site.idle_s)
                except queue.Empty:
                    self.free_memory()
                    continue
                if job.is_wanted():
                    job.answer.set_result(self.answer(job.data))
                job = None
        except Stop:
            self._refuse([job] if job else [])

    def answer(self, data: bytes) -> bytes:
        """Return the answer to one message; any error becomes a one-line failure without private text."""
        started, label, kind, record = time.monotonic(), "message", "none", None
        try:
            request = _request(data)
            kind = request.kind if request.kind in KINDS else "none"
            label = f"run={request.claim.run} round={_round(request.record)} {request.kind}"
            log.info("%s begins: %.1f MB", label, len(data) / 1e6)
            record = client_messages.handle(request, self.site.facts, self.guard, self.make_room)
        except AccordError as error:
            log.error("%s: %s: %s", label, type(error).__name__, error)
            record = encode_failure(Failure(type(error).__name__, str(error)))
        except Exception as error:
            record = encode_failure(unexpected_failure(error, label))
        seconds = time.monotonic() - started
        telemetry.count(kind, _outcome(record), seconds)
        log.info("%s ends: %.2f s", label, seconds)
        return pack({}, record)

    def free_memory(self) -> None:
        """Free the rows, tokens and base model of the last run."""
        if self.run or self.base:
            log.info("run=%s released after %g s without a message", self.run, self.site.idle_s)
        self.run, self.base = "", ()
        caches.drop(Holds.RUN)
        setup.forget()

    def make_room(self, run: str, config: Config) -> None:
        """Free the rows and tokens of another run, and its base model unless this run uses the same."""
        base = config.model, config.lora, config.task_choice.build().private_parts
        if run != self.run:
            caches.drop(Holds.RUN)
        if base != self.base:
            setup.forget()
        self.run, self.base = run, base

    def _refuse(self, jobs: list[Job]) -> None:
        with suppress(queue.Empty):
            while True:
                jobs.append(self.jobs.get_nowait())
        failure = Failure("SiteError", "the site process was stopped before it answered")
        for job in jobs:
            if not job.answer.done():
                job.answer.set_result(pack({}, encode_failure(failure)))
        log.info("stopped; %d messages left unanswered", len(jobs))


def main(site: SiteFile) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigError if another process serves the address."""
    telemetry.log_as(site.log_format)
    service = Service(site, _guard(site.policy))
    processes.join()
    if not processes.is_leader():
        follow(Node.read(site.facts), service.make_room, client_messages.site_for)
        return
    with _exclusive(site.socket):
        server = _server(service, site.token())
        if site.metrics_port:
            telemetry.serve(site.metrics_port)
        with raise_on_signals((signal.SIGTERM, signal.SIGINT), lambda number: Stop()):
            log.info(
                "site partition-id=%d of %d at %s, processes=%d: ready",
                site.partition_id,
                site.num_partitions,
                site.address,
                processes.size(),
            )
            service.serve()
            if processes.size() > 1:
                processes.broadcast(END)
            server.stop(GRACE_S).wait()


def _guard(policy: str) -> Guard:
    if not policy:
        return lambda site, claim: site
    rules = Policy.read(Path(policy))
    return lambda site, claim: GuardedSite(site, rules, claim)


def _server(service: Service, token: str) -> grpc.Server:
    """Start a gRPC server whose handler queues messages. Raises ConfigError if the address is taken."""

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        received = dict(context.invocation_metadata()).get(TOKEN, "")
        if token and not hmac.compare_digest(str(received).encode(), token.encode()):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the site's token-file holds another token")
        job = Job(data, context.is_active)
        service.jobs.put(job)
        return job.answer.result()

    options = [
        ("grpc.max_receive_message_length", service.site.max_message_mb * MIB),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
    ]
    name, method = METHOD.strip("/").split("/")
    handler = grpc.method_handlers_generic_handler(
        name, {method: grpc.unary_unary_rpc_method_handler(answer)}
    )
    server = grpc.server(
        ThreadPoolExecutor(MAX_QUEUED), [handler], options=options, maximum_concurrent_rpcs=MAX_QUEUED
    )
    before = os.umask(0o177)
    try:
        server.add_insecure_port(service.site.address)
    except RuntimeError as error:
        raise ConfigError(f"address = {service.site.address!r} cannot be served; is it taken?") from error
    finally:
        os.umask(before)
    if service.site.socket:
        service.site.socket.chmod(int(service.site.socket_mode, 8))
    server.start()
    return server


@contextmanager
def _exclusive(socket: Path | None) -> Iterator[None]:
    """Hold the lock of this socket path; remove a stale socket before, and ours after.

    Raises ConfigError if another process holds the lock or the path is not a socket.
    """
    if socket is None:
        yield  # a port is exclusive by itself
        return
    try:
        socket.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{socket}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"address = {socket}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"address = {socket}: another `accord site` serves it; stop it first"
            ) from error
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(socket.lstat().st_mode):
                raise ConfigError(f"address = {socket}: a file that is not a socket exists there; remove it")
            socket.unlink()
        yield
        socket.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _request(data: bytes) -> Request:
    """Parse a relay's message.

    Raises FrameError if it is malformed, SiteError if it comes from another version of Accord.
    """
    head, record = unpack(data)
    head = head if isinstance(head, dict) else {}
    sender, receiver = (head.get("accord"), head.get("format")), (__version__, FORMAT)
    if sender != receiver:
        raise SiteError(
            "the app that the server sent is Accord {!r} with message format {!r}, this site is {!r} with "
            "{!r}; upgrade the older one".format(*sender, *receiver)
        )
    kind, keys, claims = head.get("kind"), head.get("keys"), [head.get(n) for n in ("run", "owner", "app")]
    if not isinstance(keys, dict) or not all(map(_is_loggable, (kind, *claims))):
        raise FrameError("not a message of Accord: its header is incomplete")
    return Request(str(kind), keys, record, Claim(*map(str, claims)))


def _is_loggable(text: object) -> bool:
    """Whether `text` is a string that fits into one line of the log."""
    return isinstance(text, str) and text.isprintable() and len(text) <= 300


def _outcome(record: RecordDict) -> str:
    failure = json.loads(str(record.config_records[FACTS]["json"])).get("failure")
    return str(failure[0]) if failure else "answered"


def _round(record: RecordDict) -> str:
    """Return the round that a record names, for the log; "-" if it names none."""
    try:
        return str(int(json.loads(str(record.config_records[FACTS]["json"]))["round"]))
    except (KeyError, ValueError, TypeError):
        return "-"
