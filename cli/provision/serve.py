"""The server's kit at work: start its SuperLink, and keep the sites that it knows equal to those of the kit."""

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
from cli.provision.federation import split
from cli.provision.kits import SOON
from core.errors import ConfigError
from core.files import read_toml

GONE = "unregistered"  # a status of flwr's
NEVER = "N/A"  # its time of what has not been
REGISTERED = "registered.toml"  # what the SuperLink was told: it does not tell a node's name or key itself


def start(kit: Path) -> None:
    """Become the SuperLink of this kit."""
    command = superlink(kit.resolve())
    for note in cleaned(os.environ)[1]:
        print(f"accord: {note}", flush=True)
    os.execve(command[0], command, environment(FLWR_HOME=str(connection(kit))))


def superlink(kit: Path) -> list[str]:
    """The command that starts it; ConfigError for what would make every site fail later."""
    about = read_kit(kit, "server")
    print(f"accord: certificate for {certificate(kit)[1]}", flush=True)
    for key in ("fleet", "control"):
        check_free(about[key])
    (kit / about["state-dir"]).mkdir(mode=0o700, exist_ok=True)
    host, port = split(about["control"])
    return [
        str(BIN / "flower-superlink"),
        *("--ssl-ca-certfile", str(kit / "ca.crt")),
        *("--ssl-certfile", str(kit / "server.crt"), "--ssl-keyfile", str(kit / "server.key")),
        *("--enable-supernode-auth", "--database", str(kit / about["state-dir"] / "superlink.db")),
        *("--fleet-api-address", about["fleet"], "--host", host, "--port", port),
    ]


def connection(kit: Path) -> Path:
    """The FLWR_HOME of a server's kit, in which its SuperLink is known by the federation's name."""
    about, home = read_kit(kit, "server"), kit.resolve() / "flwr"
    home.mkdir(exist_ok=True)
    link = {"address": about["control"], "root-certificates": str(kit.resolve() / "ca.crt")}
    known = {"superlink": {"default": about["federation"], about["federation"]: link}}
    write(home / "config.toml", tomli_w.dumps(known).encode())
    return home


def register(kit: Path) -> Iterator[str]:
    """Tell the SuperLink the sites of the kit: those that are new, those that are gone, those with another key."""
    name, done, known = read_kit(kit, "server")["federation"], kit / REGISTERED, _registered(kit)
    wanted = {path.stem: path for path in sorted((kit / "sites").glob("*.pub"))}
    alive = {node["node-id"]: node["status"] for node in _flwr(kit, "list", name)["nodes"]}
    known["in"] = {s: r for s, r in known["in"].items() if alive.get(r["node"], GONE) != GONE}
    for site, record in list(known["in"].items()):
        if site not in wanted or fingerprint(wanted[site]) != record["key"]:
            _flwr(kit, "unregister", record["node"], name)
            known["out"].append(known["in"].pop(site)["key"])
            write(done, tomli_w.dumps(known).encode())
            yield f"{site}  {record['key']} is let in no more"
    for site, path in wanted.items():
        key = fingerprint(path)
        if site in known["in"]:
            yield f"{site}  {key} is known"
        elif key in known["out"]:
            yield f"{site}  {key} was let out, and a SuperLink takes a key once: this site needs another key"
        else:
            answer = _flwr(kit, "register", str(path), name, "--name", site)
            known["in"][site] = {"node": str(answer["node-id"]), "key": key}
            write(done, tomli_w.dumps(known).encode())
            yield f"{site}  {key} is let in from now on"


def _registered(kit: Path) -> dict[str, Any]:
    """in: of each site its node and its key. out: keys that were taken away."""
    path = kit / REGISTERED
    known = read_toml(path) if path.exists() else {"in": {}, "out": []}
    inside, outside = known.get("in"), known.get("out")
    if not isinstance(inside, dict) or not isinstance(outside, list):
        raise ConfigError(f"{path}: expected the table in and the list out; put it back from a copy")
    if not all(isinstance(r, dict) and {"node", "key"} <= r.keys() for r in inside.values()):
        raise ConfigError(f"{path}: expected node and key of each site; put it back from a copy")
    return known


def _flwr(kit: Path, *words: str) -> Mapping[str, Any]:
    """What `flwr supernode WORDS` answers; ConfigError with its own reason when it fails."""
    done = subprocess.run(
        [str(BIN / "flwr"), "supernode", *words, "--format", "json"],
        env=environment(FLWR_HOME=str(connection(kit))),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = {"success": False, "error-message": done.stdout + done.stderr}
    if not answer.get("success"):
        lines = [line for line in str(answer.get("error-message")).splitlines() if line.strip()]
        raise ConfigError(
            f"the SuperLink at {read_kit(kit)['control']} did not {words[0]} {words[1]}: {lines[-1] if lines else '?'}"
        )
    return answer


def certificate(kit: Path) -> tuple[Verdict, str]:
    """For which names, and whether it ends soon; ConfigError when sites would refuse it."""
    found, authority = read_certificate(kit / "server.crt"), read_certificate(kit / "ca.crt")
    left, path = days_left(found), kit / "server.crt"
    if left < 0:
        raise ConfigError(
            f"{path} expired on {found.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, every site would refuse it; "
            "make another: `accord provision FEDERATION.toml --renew`"
        )
    if not is_signed_by(found, authority):
        raise ConfigError(
            f"{path} was not signed by {kit / 'ca.crt'}, every site would refuse it; provision again"
        )
    if not (kit / "server.key").is_file():
        raise ConfigError(f"{kit / 'server.key'} is gone; make another: `accord provision ... --renew`")
    if (kit / "server.key").stat().st_mode & 0o077:
        raise ConfigError(
            f"{kit / 'server.key'} can be read by others; chmod 600 it, or `accord provision --renew`"
        )
    names = ", ".join(sorted(names_of(found)))
    if left < SOON:
        return "note", f"{names}; make another with --renew within {left:.0f} days"
    return "ok", names


def sites(kit: Path) -> Iterator[tuple[str, str, str]]:
    """Of each registered site its name, flwr's word for how it is, and since when; ConfigError without an answer."""
    known = _registered(kit)["in"]
    nodes = {n["node-id"]: n for n in _flwr(kit, "list", read_kit(kit, "server")["federation"])["nodes"]}
    for site in sorted({path.stem for path in (kit / "sites").glob("*.pub")} | set(known)):
        node = nodes.get(known[site]["node"], {}) if site in known else {}
        status = str(node.get("status", "not registered: `accord register`"))
        since = str(node.get("online-at" if status == "online" else "offline-at") or "")
        yield site, status, "" if since == NEVER else since


def check_free(address: str) -> None:
    host, port = split(address)
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f'expected "HOST:PORT", got {address!r}: is {KIT} as `accord provision` made it?')
    check_port(host, int(port), "is a SuperLink already there?")
