"""federation.toml: the server and the sites of a federation, and their addresses."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from core.addresses import join_address, split_address
from core.errors import ConfigError
from core.files import read_toml
from core.tables import read_table

MOST_DAYS = 36500
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True)
class SitePlan:
    """A site as federation.toml describes it. The site itself can change its site.toml later."""

    name: str
    own_key: bool = False  # its private key is made at the site; the server gets the public half
    data_path: str = (
        ""  # a file or folder at the site; "": the site takes its partition of the run's data.source
    )
    address: str = "unix:site.sock"  # where `accord site` listens for the SuperNode on the same machine
    state_dir: str = "state"  # caches and private memory, at the site; relative to the kit
    port: int = 9094  # the SuperNode's own API, on the loopback of the site's machine


@dataclass(frozen=True)
class Federation:
    """The server, the names under which its sites reach it, and the sites."""

    name: str
    hosts: tuple[str, ...]  # DNS names and IP addresses of the server; the sites use the first
    sites: tuple[SitePlan, ...]
    fleet_port: int = 9092  # the only port that sites connect to
    listen: str = "0.0.0.0"  # the server's local address on which that port is open
    control: str = "127.0.0.1:8000"  # where `accord run` submits runs; it has no authentication
    days: int = 365  # validity of the server's certificate
    ca_days: int = 3650
    program: str = "/opt/accord/.venv/bin/accord"  # the command's path on every machine, in the systemd units
    folder: str = "/srv/accord"  # the parent folder of a machine's kit, in the systemd units
    image: str = "accord"  # the image of the compose files

    @property
    def address(self) -> str:
        """HOST:PORT that the sites connect to."""
        return join_address(self.hosts[0], self.fleet_port)

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the server's certificate, with the loopback ones that processes on the server use."""
        return tuple(dict.fromkeys((*self.hosts, "localhost", "127.0.0.1", split_address(self.control)[0])))


def read_federation(path: Path) -> Federation:
    """Read federation.toml. Raises ConfigError for a missing or invalid file, an unknown, missing or wrong key."""
    document = read_toml(path)
    tables = document.pop("sites", {})
    if not isinstance(tables, dict) or not tables:
        raise ConfigError(f"{path}: expected a table for each site, such as [sites.north], got {tables!r}")
    sites = tuple(
        read_table(SitePlan, table, f"{path}: [sites.{name}]", name=name) for name, table in tables.items()
    )
    hosts = document.pop("hosts", None)
    if not isinstance(hosts, list) or not hosts or not all(isinstance(host, str) for host in hosts):
        raise ConfigError(f'{path}: expected hosts = ["fl.example.org"], the server\'s names, got {hosts!r}')
    federation = read_table(Federation, document, str(path), hosts=tuple(hosts), sites=sites)
    _check(federation, path)
    return federation


def _check(federation: Federation, path: Path) -> None:
    for name in (federation.name, *(site.name for site in federation.sites)):
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"{path}: a name must be 1 to 32 of a-z, 0-9 and -, and must not begin or end with -; got {name!r}"
            )
    host, port = split_address(federation.control, f"{path}: control")
    for value in federation.hosts:
        if not (is_address(value) or HOST.fullmatch(value)):
            raise ConfigError(f"{path}: hosts must hold host names and IP addresses, got {value!r}")
    if not (is_address(host) or HOST.fullmatch(host)):
        raise ConfigError(
            f'{path}: control must be "HOST:PORT" of a host name or an IP address, got {federation.control!r}'
        )
    if not is_address(federation.listen):
        raise ConfigError(f"{path}: listen must be an IP address, such as 0.0.0.0, got {federation.listen!r}")
    ports = [(f"[sites.{site.name}] port", site.port) for site in federation.sites]
    for key, number in (("fleet-port", federation.fleet_port), *ports):
        if not 0 < number < 65536:
            raise ConfigError(f"{path}: {key} must be a port from 1 to 65535, got {number}")
    for key, days in (("days", federation.days), ("ca-days", federation.ca_days)):
        if not 0 < days <= MOST_DAYS:
            raise ConfigError(f"{path}: {key} must be from 1 to {MOST_DAYS}, got {days}")
    if port == federation.fleet_port:
        raise ConfigError(f"{path}: control and fleet-port both use port {port} of the server; change one")


def is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
