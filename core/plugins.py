"""Find plugins by file name: `build("strategies", "fedadam", ...)` makes the class PLUGIN of strategies/fedadam.py."""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from core.errors import ConfigError
from core.tables import did_you_mean
from core.types import Scalar


def names(package: str) -> list[str]:
    """List the plugins of a package without importing them: every file except base.py, no folders."""
    path = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(path) if not m.ispkg and m.name != "base")


def plugin(package: str, name: str) -> type[Any]:  # any dataclass: the packages have different contracts
    """Return the class of a plugin. Raises ConfigError for an unknown name, or if a module that it needs is missing."""
    have = names(package)
    if name not in have:
        hint = " ".join(filter(None, (did_you_mean(name, have), f"(have: {', '.join(have)})")))
        raise ConfigError(f"no {package.replace('.', '/')}/{name}.py; {hint}")
    try:
        return importlib.import_module(f"{package}.{name}").PLUGIN
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in {"core", "strategies", "tasks", "evals"}:
            raise
        file = f"{package.replace('.', '/')}/{name}.py"
        raise ConfigError(f"{file} needs {error.name}; install it with: pip install {error.name}") from error


def default_options(cls: type[Any]) -> dict[str, Scalar]:
    """Return the options of a plugin and their defaults: its dataclass fields in kebab case."""
    return {f.name.replace("_", "-"): f.default for f in fields(cls) if f.default is not MISSING}


def build(package: str, name: str, options: Mapping[str, Scalar]) -> Any:  # the package's own contract
    """Make an instance of the plugin; the keys of `options` are in kebab case."""
    return plugin(package, name)(**{k.replace("-", "_"): v for k, v in options.items()})
