"""The command that lists plugins and keys."""

import re
import sys

import typer

from core.config import defaults
from core.plugins import default_options, names, plugin

SECTION_OF = {"tasks": "task", "strategies": "strategy", "tasks.data": "data", "evals": "eval"}


def list_plugins() -> None:
    """Print every plugin and every key with its default."""
    for package, section in SECTION_OF.items():
        typer.echo(f"{package.replace('.', '/')}/")
        for name in names(package):
            cls = plugin(package, name)
            summary = " ".join((sys.modules[cls.__module__].__doc__ or "").split("\n\n")[0].split())
            typer.echo(f"  {name:<14}{re.split(r'(?<=[.])[ ]', summary)[0]}")
            for key, default in default_options(cls).items():
                typer.echo(f"    {section}.{key} = {default!r}")
    typer.echo("keys")
    for key, default in defaults().items():
        typer.echo(f"  {key} = {default!r}")
