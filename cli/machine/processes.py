"""The programs that Accord starts, their environment, and the kit that they are started from."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.machine.environment import cleaned, die_with_parent
from core.addresses import join_address
from core.errors import ConfigError
from core.files import read_toml

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]  # the app: the sources that Flower ships, and pyproject.toml
# the package `accord`, which is started by its path
ACCORD = ROOT / "accord" if (ROOT / "accord").is_dir() else ROOT.parent
KIT = "kit.toml"
KIT_KEYS: dict[str, dict[str, type]] = {  # the keys of a kit.toml, by its kind
    "server": {"federation": str, "fleet": str, "control": str, "state-dir": str},
    "site": {"name": str, "federation": str, "superlink": str, "runtime-port": int},
}
FLOWER = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def environment(**extra: str) -> dict[str, str]:
    """The environment for a child: this process's, cleaned, with Accord's programs first and telemetry off."""
    path = os.environ.get("PATH", os.defpath)
    return {**cleaned(os.environ)[0], **FLOWER, "PATH": f"{BIN}{os.pathsep}{path}", **extra}


def start_piped(command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a process that ends with this one, and whose output is read as text from its stdout."""
    return subprocess.Popen(
        command,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        preexec_fn=die_with_parent,
    )


def check_home() -> None:
    """Raise ConfigError if ACCORD_HOME, the folder of built-in models and caches, cannot be written."""
    home = os.environ.get("ACCORD_HOME")
    try:
        folder = Path(home or "~/.accord").expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except RuntimeError as error:  # of expanduser
        raise ConfigError(
            "this user has no home folder: set HOME, or set ACCORD_HOME to a folder for Accord's models and caches"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"cannot write Accord's models and caches to {home or '~/.accord'}: {error.strerror}; set "
            "ACCORD_HOME to another folder"
        ) from error


def check_port(host: str, port: int, hint: str) -> None:
    """Raise ConfigError, ending in `hint`, if this machine cannot listen on host and port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            address = join_address(host, port)
            raise ConfigError(f"cannot listen on {address}: {error.strerror}; {hint}") from error


def read_kit(kit: Path, kind: str = "") -> Mapping[str, Any]:
    """Read kit.toml. Raises ConfigError if `kit` is not a kit, or not of `kind` where that is not empty."""
    try:
        about = read_toml(kit / KIT)
    except ConfigError as error:
        raise ConfigError(
            f"{kit} was not made by `accord provision`: expected a {KIT} in it ({error})"
        ) from error
    if about.get("kind") not in list(KIT_KEYS):
        raise ConfigError(
            f"{kit / KIT}: kind must be one of {' | '.join(KIT_KEYS)}, got {about.get('kind')!r}"
        )
    for key, expected in KIT_KEYS[about["kind"]].items():
        if type(about.get(key)) is not expected:
            raise ConfigError(
                f"{kit / KIT}: {key} must be {expected.__name__}, got {about.get(key)!r}; provision again"
            )
    if kind and about["kind"] != kind:
        raise ConfigError(f"{kit} is the kit of a {about['kind']}, expected the kit of a {kind}")
    return about
