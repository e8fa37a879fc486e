"""Relay a message to the resident site process and return its answer.

Flower starts a ClientApp process for every message, so this module imports neither torch nor the configuration. The
app that a server uploads never sees a row.
"""

import logging
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import grpc

from core import __version__
from core.addresses import split_address
from core.errors import AccordError, ConfigError, SiteError
from core.framing import Failure, RecordDict, encode_failure, pack, unpack

log = logging.getLogger(__name__)

METHOD = "/accord.Site/Answer"
FORMAT = 1  # version of the messages that a relay sends
TOKEN = "accord-token"  # metadata key, on loopback
RETRY_S = 0.05  # between two attempts to reach the site
CONNECT_S = 5.0  # on loopback
NOT_SENT = "failed to connect"  # gRPC's text when the listening process ended before it got the message
LOSSES = 3  # number of lost answers after which the message fails
Keys = Mapping[str, bool | int | float | str]
OPTIONS = [
    ("grpc.max_send_message_length", -1),  # the site has its own limit
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),
]


def relay(kind: str, record: RecordDict, run: int, keys: Keys, node: Keys) -> RecordDict:
    """Return the site's answer, or a one-line failure. node: has `site`, and `site-token` if that is on loopback."""
    try:
        head = {
            "format": FORMAT,
            "accord": __version__,
            "kind": kind,
            "run": str(run),
            "owner": "",
            "app": app_folder(),
            "keys": dict(keys),
        }
        wait_s = keys.get("site.wait-s", 0.0)
        if not isinstance(wait_s, int | float) or not wait_s >= 0:
            raise ConfigError(f"site.wait-s must be a number of seconds, got {wait_s!r}")
        token = _token(str(node.get("site-token", "")))
        return unpack(ask(str(node["site"]), pack(head, record), token, wait_s))[1]
    except AccordError as error:
        log.error("%s: %s", type(error).__name__, error)
        return encode_failure(Failure(type(error).__name__, str(error)))


def app_folder() -> str:
    """Return the name of this app's folder; it ends in the bundle's hash if Flower unpacked it."""
    return Path(__file__).resolve().parents[1].name


def ask(address: str, data: bytes, token: str, wait_s: float) -> bytes:
    """Send `data` to the site and return its answer.

    A message whose answer was lost is sent again; this is safe because a site gives the same answer to the same order.

    Raises SiteError if the site cannot be reached for `wait_s` seconds, refuses, or loses LOSSES answers.
    """
    metadata = ((TOKEN, token),) if token else ()
    lost, deadline = 0, time.monotonic() + wait_s
    while lost < LOSSES:
        if _listens(address):
            started = time.monotonic()
            try:
                with grpc.insecure_channel(address, OPTIONS) as channel:
                    return channel.unary_unary(METHOD)(data, metadata=metadata)
            except grpc.RpcError as error:
                code, details = error.code(), error.details()  # type: ignore[attr-defined]  # an RpcError is also a Call
            if code is not grpc.StatusCode.UNAVAILABLE:
                raise SiteError(f"the site at {address} refuses: {details} ({code.name})")
            if NOT_SENT not in (details or ""):
                lost, deadline = lost + 1, time.monotonic() + wait_s
                log.warning(
                    "site=%s lost=%d after %.1f s: %s", address, lost, time.monotonic() - started, details
                )
                continue
        if time.monotonic() > deadline:
            raise SiteError(
                f"no site answered at {address} within site.wait-s = {wait_s:g} s; is `accord site` running there?"
            )
        time.sleep(RETRY_S)
    raise SiteError(f"the site at {address} disconnected {LOSSES} times before it answered; see its log")


def _listens(address: str) -> bool:
    """Whether a process listens at the address. (A gRPC channel could tell too, but then takes 0.2 s to close.)"""
    try:
        _connect(address).close()
    except (OSError, ValueError, ConfigError):  # the last two for an address of another form
        return False
    return True


def _connect(address: str) -> socket.socket:
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(address.removeprefix("unix:").removeprefix("//"))
        except OSError:
            connection.close()
            raise
        return connection
    return socket.create_connection(split_address(address), timeout=CONNECT_S)


def _token(path: str) -> str:
    try:
        return Path(path).expanduser().read_text().strip() if path else ""
    except OSError as error:
        raise ConfigError(
            f"site-token = {path!r} in the node config cannot be read: {error.strerror}"
        ) from error
