"""The deployments in Flower's config.toml of this machine, and whether their SuperLink answers or runs here."""

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from cli.machine.environment import proxy_for
from core.addresses import split_address
from core.errors import ConfigError
from core.files import read_toml

MANAGED = ":local:"  # the address of a SuperLink that Flower starts itself
FLOWER_DEFAULTS = {
    "local": {"address": MANAGED},
    "supergrid": {},
}  # Flower writes these into a missing config.toml
ANSWER_S = 5.0


@dataclass(frozen=True)
class Connection:
    """A named SuperLink."""

    name: str
    address: str  # HOST:PORT; "" if Flower chooses the address

    @property
    def place(self) -> tuple[str, int] | None:
        """Host and port, or None for an address of another form."""
        try:
            return split_address(self.address.removeprefix("https://").removeprefix("http://"))
        except ConfigError:
            return None


def connection(name: str, environ: Mapping[str, str]) -> Connection:
    """The SuperLink that federation.superlink names, from the config.toml of FLWR_HOME.

    Raises ConfigError for an unknown name, or root certificates that are missing.
    """
    try:
        home = Path(environ.get("FLWR_HOME") or Path.home() / ".flwr")
    except RuntimeError as error:
        raise ConfigError("this user has no home folder with Flower's config.toml: set FLWR_HOME") from error
    file = home / "config.toml"
    links = read_toml(file).get("superlink", {}) if file.exists() else FLOWER_DEFAULTS
    link = links.get(name) if isinstance(links, dict) else None
    if not isinstance(link, dict):
        names = sorted(n for n, value in links.items() if isinstance(value, dict)) if file.exists() else []
        has = f"has {', '.join(names) or 'none'}" if file.exists() else "does not exist"
        raise ConfigError(
            f"federation.superlink = {name!r}: expected a [superlink.{name}] in Flower's {file}, which {has}; set "
            "FLWR_HOME to the folder flwr in the server's kit"
        )
    certificates = link.get("root-certificates")
    if isinstance(certificates, str) and certificates.startswith("/") and not Path(certificates).is_file():
        raise ConfigError(
            f"root-certificates = {certificates!r} of [superlink.{name}] in {file}: no such file"
        )
    return Connection(name, "" if link.get("address") == MANAGED else str(link.get("address") or ""))


def check_reachable(link: Connection, environ: Mapping[str, str]) -> None:
    """Raise ConfigError if nothing listens at the address; a SuperLink behind a proxy is not tried here."""
    if link.place is None or proxy_for(environ, link.place[0]):
        return
    deadline = time.monotonic() + ANSWER_S  # the SuperLink may be starting
    while True:
        try:
            socket.create_connection(link.place, timeout=ANSWER_S).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"federation.superlink = {link.name!r}: no answer from {link.address} ({error}); is the SuperLink "
                    "up (`accord start KIT` on the server), and is its control port open to this machine?"
                ) from error
            time.sleep(0.2)
        else:
            return


def folder_here(link: Connection) -> Path | None:
    """The working folder of the SuperLink if it is a process of this machine; None if it is elsewhere or unknown.

    The address does not tell: a port forwarded from another machine is on the loopback too. So the process that
    listens on the port is looked up.
    """
    if link.place is None:
        return None
    try:
        sockets = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return None
    for listener in sockets:
        if (
            listener.status != psutil.CONN_LISTEN
            or not listener.pid
            or tuple(listener.laddr)[1] != link.place[1]
        ):
            continue
        try:
            process = psutil.Process(listener.pid)
            if any(os.path.basename(argument) == "flower-superlink" for argument in process.cmdline()):
                return Path(process.cwd())
        except psutil.Error:
            continue
    return None
