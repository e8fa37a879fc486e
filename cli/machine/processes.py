"""How Flower's programs are started: which, with what environment, from which kit."""

import os
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cli.machine.environment import cleaned
from core.errors import ConfigError
from core.files import read_toml

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]  # the app: what Flower ships, and its pyproject.toml
ACCORD = (
    ROOT / "accord" if (ROOT / "accord").is_dir() else ROOT.parent
)  # the package; Python runs it by its path
KIT = "kit.toml"
HOLDS: dict[str, dict[str, type]] = {  # a kit.toml, by its kind
    "server": {"federation": str, "fleet": str, "control": str, "state-dir": str},
    "site": {"name": str, "federation": str, "superlink": str, "runtime-port": int},
}
FLOWER = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def environment(**more: str) -> dict[str, str]:
    """This process's own, cleaned for a child, with Accord's programs first and Flower's own errands off."""
    path = os.environ.get("PATH", os.defpath)
    return {**cleaned(os.environ)[0], **FLOWER, "PATH": f"{BIN}{os.pathsep}{path}", **more}


def check_home() -> None:
    """ConfigError where Accord's own folder, for models that ship with it and for caches, cannot be written."""
    named = os.environ.get("ACCORD_HOME")
    try:
        folder = Path(named or "~/.accord").expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except RuntimeError as error:  # of expanduser
        raise ConfigError(
            "this user has no home folder: set HOME, or ACCORD_HOME for Accord's caches"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"Accord keeps models and caches in {named or '~/.accord'}, which cannot be written: {error.strerror}; set "
            "ACCORD_HOME to another folder"
        ) from error


def check_port(host: str, port: int, hint: str) -> None:
    """ConfigError where this machine cannot listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            raise ConfigError(f"cannot listen on {at}: {error.strerror}; {hint}") from error


def read_kit(kit: Path, kind: str = "") -> Mapping[str, Any]:
    """kit.toml of a kit; ConfigError for a folder that is none, or of the other kind."""
    try:
        about = read_toml(kit / KIT)
    except ConfigError as error:
        raise ConfigError(
            f"{kit} is no kit of `accord provision`: expected a {KIT} in it ({error})"
        ) from error
    if about.get("kind") not in list(HOLDS):
        raise ConfigError(f"{kit / KIT}: kind must be one of {' | '.join(HOLDS)}, got {about.get('kind')!r}")
    for key, wanted in HOLDS[about["kind"]].items():
        if type(about.get(key)) is not wanted:
            raise ConfigError(
                f"{kit / KIT}: {key} must be {wanted.__name__}, got {about.get(key)!r}; provision again"
            )
    if kind and about["kind"] != kind:
        raise ConfigError(f"{kit} is the kit of a {about['kind']}, expected the kit of a {kind}")
    return about
