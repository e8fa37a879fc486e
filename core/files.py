"""Read small files that may be hand-written or incomplete; any fault is a one-line error.

This module does not import torch, because a SuperNode's supervisor uses it.
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import ConfigError, DataError


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file, with or without a byte-order mark. Raises ConfigError if anything is wrong."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not TOML: byte {error.start} is not UTF-8 text") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def read_text(path: Path, key: str) -> str:
    """Read a text file that the configuration names under `key`. Raises ConfigError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{key} = {str(path)!r} cannot be read on the server: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key} = {str(path)!r} is not UTF-8 text at byte {error.start}") from error


def read_json(path: Path, missing: Any) -> Any:  # of the type of `missing`
    """Read a JSON file, or return `missing` if there is none. Raises DataError for another type of value."""
    if not path.exists():
        return missing
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON, {error}; was it edited by hand?") from error
    if type(value) is not type(missing):
        raise DataError(
            f"{path}: expected JSON of {_kind(missing)}, got {_kind(value)}; was it edited by hand?"
        )
    return value


def _kind(value: Any) -> str:
    return "an object" if isinstance(value, Mapping) else "a list" if isinstance(value, list) else "a value"
