"""The deployments that this machine knows: Flower's config.toml, and whether a SuperLink of it runs here."""

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from cli.machine.environment import proxy_for
from core.errors import ConfigError
from core.files import read_toml

MANAGED = ":local:"  # an address: a SuperLink that Flower starts itself
FLOWERS_OWN = {
    "local": {"address": MANAGED},
    "supergrid": {},
}  # what Flower writes into a config.toml that is missing
ANSWER_S = 5.0


@dataclass(frozen=True)
class Connection:
    """A SuperLink by its name."""

    name: str
    address: str  # HOST:PORT; "" where Flower knows it better

    @property
    def place(self) -> tuple[str, int] | None:
        """Host and port, or None for an address of another form."""
        host, _, port = self.address.removeprefix("https://").removeprefix("http://").rpartition(":")
        return (host.strip("[]"), int(port)) if host and port.isdecimal() else None


def connection(name: str, environ: Mapping[str, str]) -> Connection:
    """The SuperLink that federation.superlink names; ConfigError for an unknown one, before Flower is asked."""
    try:
        home = Path(environ.get("FLWR_HOME") or Path.home() / ".flwr")
    except RuntimeError as error:
        raise ConfigError("this user has no home folder for Flower's config.toml; set FLWR_HOME") from error
    file = home / "config.toml"
    known = read_toml(file).get("superlink", {}) if file.exists() else FLOWERS_OWN
    about = known.get(name) if isinstance(known, dict) else None
    if not isinstance(about, dict):
        names = sorted(n for n, value in known.items() if isinstance(value, dict)) if file.exists() else []
        has = f"has {', '.join(names) or 'none'}" if file.exists() else "is not there"
        raise ConfigError(
            f"federation.superlink = {name!r}: expected a [superlink.{name}] in Flower's {file}, which {has}; set "
            "FLWR_HOME to the folder flwr of the server's kit"
        )
    certificates = about.get("root-certificates")
    if isinstance(certificates, str) and certificates.startswith("/") and not Path(certificates).is_file():
        raise ConfigError(
            f"root-certificates = {certificates!r} of [superlink.{name}] in {file}: no such file"
        )
    return Connection(name, "" if about.get("address") == MANAGED else str(about.get("address") or ""))


def check_reachable(link: Connection, environ: Mapping[str, str]) -> None:
    """ConfigError where nobody listens at its address; a SuperLink behind a proxy is left to Flower."""
    if link.place is None or proxy_for(environ, link.place[0]):
        return
    deadline = time.monotonic() + ANSWER_S  # it may be starting
    while True:
        try:
            socket.create_connection(link.place, timeout=ANSWER_S).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"federation.superlink = {link.name!r}: no answer from {link.address} ({error}); is the SuperLink "
                    "up (`accord start KIT` on the server), is its control port open for this machine?"
                ) from error
            time.sleep(0.2)
        else:
            return


def folder_here(link: Connection) -> Path | None:
    """The working folder of the SuperLink if it is a process of this machine; None if it is elsewhere or unknown.

    A forwarded port is on the loopback too, so the process behind the port is looked at.
    """
    if link.place is None:
        return None
    try:
        listening = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return None
    for found in listening:
        if found.status != psutil.CONN_LISTEN or not found.pid or tuple(found.laddr)[1] != link.place[1]:
            continue
        try:
            process = psutil.Process(found.pid)
            if any(os.path.basename(word) == "flower-superlink" for word in process.cmdline()):
                return Path(process.cwd())
        except psutil.Error:
            continue
    return None
