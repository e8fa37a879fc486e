"""Read KEY=VALUE arguments of a command."""

import tomllib
from collections.abc import Mapping
from typing import Any

from core.errors import ConfigError


def read_setting(
    text: str, defaults: Mapping[str, Any], expected: str = "KEY=VALUE"
) -> tuple[str, Any]:  # Any: whatever TOML can hold
    """Return key and value of an argument.

    The value is read as TOML. Text that is not TOML is a string, and so is any text for a key whose default is one: it
    needs no quotes.

    Raises ConfigError, which says that `expected` was, for an argument without "=".
    """
    key, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f"expected {expected}, got {text!r}")
    if isinstance(defaults.get(key), str):
        return key, value
    try:
        return key, tomllib.loads(f"x = {value}")["x"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return key, value
