"""Small files that people write by hand and crashes leave half: a value, or one line that says what is wrong.

No torch here: a SuperNode's supervisor reads its kit by this.
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import ConfigError, DataError


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file, with or without the mark that some editors begin with; ConfigError for whatever is wrong with it."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not TOML: byte {error.start} is no UTF-8 text") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def read_text(path: Path, key: str) -> str:
    """The text of a file that the configuration names under `key`; ConfigError, one line, where that fails."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{key} = {str(path)!r} cannot be read on the server: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key} = {str(path)!r} is not UTF-8 text: see byte {error.start}") from error


def read_json(path: Path, missing: Any) -> Any:  # of the kind that `missing` is
    """A JSON file, or `missing` where there is none; DataError unless it holds the kind of value that `missing` is."""
    if not path.exists():
        return missing
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON, {error}; was it edited by hand?") from error
    if type(found) is not type(missing):
        raise DataError(
            f"{path}: expected JSON of {_kind(missing)}, got {_kind(found)}; was it edited by hand?"
        )
    return found


def _kind(value: Any) -> str:
    return "an object" if isinstance(value, Mapping) else "a list" if isinstance(value, list) else "a value"
