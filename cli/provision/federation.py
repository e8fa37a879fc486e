"""federation.toml: who takes part, and where they meet."""

import difflib
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from core.errors import ConfigError
from core.files import read_toml

MOST_DAYS = 36500
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True)
class SitePlan:
    """A site as the federation describes it; what only the site knows goes into its own site.toml."""

    name: str
    own_key: bool = False  # its private key is made at the site; the server gets the public half
    data_path: str = ""  # a file or folder at the site; "": its share of the run's data.source
    address: str = "unix:site.sock"  # where `accord site` listens for the SuperNode beside it
    state_dir: str = "state"  # caches and private memory, at the site; relative paths begin at the kit
    port: int = 9094  # of the SuperNode's own API, on the loopback of the site's machine


@dataclass(frozen=True)
class Federation:
    """A server, under the names by which its sites reach it, and the sites."""

    name: str
    hosts: tuple[str, ...]  # DNS names and IP addresses of the server; the sites use the first
    sites: tuple[SitePlan, ...]
    fleet_port: int = 9092  # the one port that the sites need to reach
    listen: str = "0.0.0.0"  # address of the server's own machine on which that port is open
    control: str = "127.0.0.1:8000"  # where `accord run` asks for a run; no account is asked for there
    days: int = 365  # validity of the server's certificate
    ca_days: int = 3650
    program: str = "/opt/accord/.venv/bin/accord"  # on every machine, for the systemd units
    folder: str = "/srv/accord"  # holds a machine's kit, for the systemd units
    image: str = "accord"  # for the compose files

    @property
    def address(self) -> str:
        """What the sites connect to."""
        return join(self.hosts[0], self.fleet_port)

    @property
    def names(self) -> tuple[str, ...]:
        """All names that the server's certificate has to hold; its own processes use the loopback ones."""
        return tuple(dict.fromkeys((*self.hosts, "localhost", "127.0.0.1", split(self.control)[0])))


def read_federation(path: Path) -> Federation:
    """Raises ConfigError for a file that is missing or no TOML, an unknown or missing key, a wrong value."""
    document = read_toml(path)
    given = document.pop("sites", {})
    if not isinstance(given, dict) or not given:
        raise ConfigError(f"{path}: expected a table per site, such as [sites.north], got {given!r}")
    sites = tuple(
        _filled(SitePlan, table, f"{path}: [sites.{name}]", name=name) for name, table in given.items()
    )
    hosts = document.pop("hosts", None)
    if not isinstance(hosts, list) or not hosts or not all(isinstance(host, str) for host in hosts):
        raise ConfigError(f'{path}: expected hosts = ["fl.example.org"], the server\'s names, got {hosts!r}')
    federation = _filled(Federation, document, str(path), hosts=tuple(hosts), sites=sites)
    _check(federation, path)
    return federation


def _filled(cls: type, table: Any, where: str, **more: Any) -> Any:
    """An instance of cls from a table in kebab case; every key and type is checked."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: expected a table, got {table!r}")
    types = get_type_hints(cls)
    known = {field.name.replace("_", "-"): field for field in fields(cls) if field.name not in more}
    values = dict(more)
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"have: {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
        wanted = types[known[key].name]
        if type(value) is not wanted:
            raise ConfigError(f"{where}: {key} must be {wanted.__name__}, got {value!r}")
        values[known[key].name] = value
    try:
        return cls(**values)
    except TypeError as error:
        missing = [key for key, field in known.items() if field.name not in values]
        raise ConfigError(f"{where}: needs {missing[0]!r}") from error


def _check(federation: Federation, path: Path) -> None:
    for name in (federation.name, *(site.name for site in federation.sites)):
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"{path}: a name is 1 to 32 of a-z, 0-9 and -, and begins and ends with none of -; got {name!r}"
            )
    host, port = split(federation.control)
    for value in federation.hosts:
        if not (is_address(value) or HOST.fullmatch(value)):
            raise ConfigError(f"{path}: hosts holds {value!r}, which is neither a host name nor an address")
    if not (is_address(host) or HOST.fullmatch(host)) or not port.isdecimal():
        raise ConfigError(f'{path}: control must be "HOST:PORT", got {federation.control!r}')
    if not is_address(federation.listen):
        raise ConfigError(f"{path}: listen must be an address, such as 0.0.0.0, got {federation.listen!r}")
    ports = [(f"[sites.{site.name}] port", site.port) for site in federation.sites]
    for key, number in (("fleet-port", federation.fleet_port), ("control", int(port)), *ports):
        if not 0 < number < 65536:
            raise ConfigError(f"{path}: {key} must be a port, 1 to 65535, got {number}")
    for key, days in (("days", federation.days), ("ca-days", federation.ca_days)):
        if not 0 < days <= MOST_DAYS:
            raise ConfigError(f"{path}: {key} must be 1 to {MOST_DAYS}, got {days}")
    if int(port) == federation.fleet_port:
        raise ConfigError(f"{path}: control and fleet-port are both {port} of one machine; change one")


def split(address: str) -> tuple[str, str]:
    """Host and port of "HOST:PORT" or "[IPV6]:PORT"."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), port


def join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
