"""Start the SuperLink of a server's kit, and register the kit's sites with it."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from cli.machine.checks import Verdict
from cli.machine.environment import cleaned
from cli.machine.keys import fingerprint, write
from cli.machine.processes import BIN, KIT, check_port, environment, read_kit
from cli.provision.certificates import days_left, is_signed_by, names_of, read_certificate
from cli.provision.kits import SOON
from core.addresses import split_address
from core.errors import ConfigError
from core.files import read_toml

GONE = "unregistered"  # flwr's status of a removed node
NEVER = "N/A"  # flwr's time of an event that has not happened
REGISTERED = "registered.toml"  # the names and keys registered so far, which the SuperLink does not report


def start(kit: Path) -> None:
    """Replace this process with the SuperLink of the kit."""
    command = superlink(kit.resolve())
    for note in cleaned(os.environ)[1]:
        print(f"accord: {note}", flush=True)
    os.execve(command[0], command, environment(FLWR_HOME=str(connection(kit))))


def superlink(kit: Path) -> list[str]:
    """The command that starts the SuperLink. Raises ConfigError for a problem that would make every site fail later."""
    about = read_kit(kit, "server")
    print(f"accord: certificate for {certificate(kit)[1]}", flush=True)
    for key in ("fleet", "control"):
        check_free(about[key])
    (kit / about["state-dir"]).mkdir(mode=0o700, exist_ok=True)
    host, port = split_address(about["control"])
    return [
        str(BIN / "flower-superlink"),
        *("--ssl-ca-certfile", str(kit / "ca.crt")),
        *("--ssl-certfile", str(kit / "server.crt"), "--ssl-keyfile", str(kit / "server.key")),
        *("--enable-supernode-auth", "--database", str(kit / about["state-dir"] / "superlink.db")),
        *("--fleet-api-address", about["fleet"], "--host", host, "--port", str(port)),
    ]


def connection(kit: Path) -> Path:
    """Write the FLWR_HOME of a server's kit, which names its SuperLink as the federation; returns the folder."""
    about, home = read_kit(kit, "server"), kit.resolve() / "flwr"
    home.mkdir(exist_ok=True)
    link = {"address": about["control"], "root-certificates": str(kit.resolve() / "ca.crt")}
    config = {"superlink": {"default": about["federation"], about["federation"]: link}}
    write(home / "config.toml", tomli_w.dumps(config).encode())
    return home


def register(kit: Path) -> Iterator[str]:
    """Register new sites of the kit with the SuperLink, and remove those that are gone or have another key.

    Yields a line per site. Raises ConfigError if the SuperLink does not answer, or its answer is an error.
    """
    name, file, registry = read_kit(kit, "server")["federation"], kit / REGISTERED, _registered(kit)
    public_keys = {path.stem: path for path in sorted((kit / "sites").glob("*.pub"))}
    statuses = {node["node-id"]: node["status"] for node in _flwr(kit, "list", name)["nodes"]}
    registry["in"] = {s: r for s, r in registry["in"].items() if statuses.get(r["node"], GONE) != GONE}
    for site, record in list(registry["in"].items()):
        if site not in public_keys or fingerprint(public_keys[site]) != record["key"]:
            _flwr(kit, "unregister", record["node"], name)
            registry["out"].append(registry["in"].pop(site)["key"])
            write(file, tomli_w.dumps(registry).encode())
            yield f"{site}  {record['key']} is removed"
    for site, path in public_keys.items():
        key = fingerprint(path)
        if site in registry["in"]:
            yield f"{site}  {key} was registered before"
        elif key in registry["out"]:
            yield f"{site}  {key} was removed, and a SuperLink accepts a key only once: this site needs another key"
        else:
            answer = _flwr(kit, "register", str(path), name, "--name", site)
            registry["in"][site] = {"node": str(answer["node-id"]), "key": key}
            write(file, tomli_w.dumps(registry).encode())
            yield f"{site}  {key} is registered"


def _registered(kit: Path) -> dict[str, Any]:
    """Read REGISTERED. in: node and key of each site. out: keys that were removed. Raises ConfigError."""
    path = kit / REGISTERED
    registry = read_toml(path) if path.exists() else {"in": {}, "out": []}
    registered, removed = registry.get("in"), registry.get("out")
    if not isinstance(registered, dict) or not isinstance(removed, list):
        raise ConfigError(f"{path}: expected a table `in` and a list `out`; restore the file from a copy")
    if not all(isinstance(r, dict) and {"node", "key"} <= r.keys() for r in registered.values()):
        raise ConfigError(f"{path}: expected node and key of each site; restore the file from a copy")
    return registry


def _flwr(kit: Path, *arguments: str) -> Mapping[str, Any]:
    """The answer of `flwr supernode ARGUMENTS`. Raises ConfigError with its message if it fails."""
    process = subprocess.run(
        [str(BIN / "flwr"), "supernode", *arguments, "--format", "json"],
        env=environment(FLWR_HOME=str(connection(kit))),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    try:
        answer = json.loads(process.stdout)
    except ValueError:
        answer = {"success": False, "error-message": process.stdout + process.stderr}
    if not answer.get("success"):
        lines = [line for line in str(answer.get("error-message")).splitlines() if line.strip()]
        raise ConfigError(
            f"the SuperLink at {read_kit(kit)['control']} failed to {arguments[0]} {arguments[1]}: "
            f"{lines[-1] if lines else 'no reason given'}"
        )
    return answer


def certificate(kit: Path) -> tuple[Verdict, str]:
    """Check the server's certificate; returns its names, and when it ends if that is soon.

    Raises ConfigError if sites would reject it.
    """
    server, authority = read_certificate(kit / "server.crt"), read_certificate(kit / "ca.crt")
    days, path = days_left(server), kit / "server.crt"
    if days < 0:
        raise ConfigError(
            f"{path} expired on {server.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, so every site would reject it; "
            "make a new one with `accord provision FEDERATION.toml --renew`"
        )
    if not is_signed_by(server, authority):
        raise ConfigError(
            f"{path} was not signed by {kit / 'ca.crt'}, so every site would reject it; provision again"
        )
    if not (kit / "server.key").is_file():
        raise ConfigError(
            f"{kit / 'server.key'} is missing; make a new one with `accord provision FEDERATION.toml --renew`"
        )
    if (kit / "server.key").stat().st_mode & 0o077:
        raise ConfigError(
            f"{kit / 'server.key'} can be read by others; chmod 600 it, or if they may have read it, "
            "make a new one with `accord provision FEDERATION.toml --renew`"
        )
    names = ", ".join(sorted(names_of(server)))
    if days < SOON:
        return "note", f"{names}; make a new one with --renew within {days:.0f} days"
    return "ok", names


def sites(kit: Path) -> Iterator[tuple[str, str, str]]:
    """The name of each site, flwr's status of it, and since when.

    Raises ConfigError if the SuperLink does not answer.
    """
    registered = _registered(kit)["in"]
    nodes = {n["node-id"]: n for n in _flwr(kit, "list", read_kit(kit, "server")["federation"])["nodes"]}
    for site in sorted({path.stem for path in (kit / "sites").glob("*.pub")} | set(registered)):
        node = nodes.get(registered[site]["node"], {}) if site in registered else {}
        status = str(node.get("status", "not registered: `accord register`"))
        since = str(node.get("online-at" if status == "online" else "offline-at") or "")
        yield site, status, "" if since == NEVER else since


def check_free(address: str) -> None:
    """Raise ConfigError unless this machine can listen on HOST:PORT."""
    try:
        host, port = split_address(address)
    except ConfigError as error:
        raise ConfigError(f"{error}; was {KIT} edited? `accord provision` makes it again") from error
    check_port(host, port, "is a SuperLink already running?")
