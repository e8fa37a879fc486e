"""The data source that reads a site's own file."""

import contextlib
from pathlib import Path

from core.errors import ConfigError
from core.plugins import names, plugin
from tasks.data.base import Source

PACKAGE = "tasks.data"


def own_source(path: str, name: str = "") -> Source:
    """The source that reads the file or folder `path`: the one called `name`, else the one that declares its ending.

    Raises ConfigError if there is none.
    """
    readers = {each: endings for each in names(PACKAGE) if (endings := own_files(each))}
    if name and name not in readers:
        raise ConfigError(
            f"data-source = {name!r} does not read a site's own file; expected {' | '.join(readers)}"
        )
    place = Path(path).expanduser()
    ending = f"{place.name.lower()}{'/' if place.is_dir() else ''}"
    reader = name or next((each for each, endings in readers.items() if ending.endswith(endings)), "")
    if not reader:
        wanted = ", ".join(sorted(e for endings in readers.values() for e in endings if e != "/"))
        raise ConfigError(
            f"data-path = {path!r}: expected a folder, or a file whose name ends in {wanted}; or set "
            f"data-source to {' | '.join(readers)}",
            names=[path, place.name, repr(path)[1:-1]],
        )
    return plugin(PACKAGE, reader)(path=path)


def own_files(source: str) -> tuple[str, ...]:
    """The endings of the files that a data source reads as a site's own; see tasks.data.base.Source."""
    with contextlib.suppress(ConfigError):  # a plugin that needs a missing package reads no file
        return getattr(plugin(PACKAGE, source), "own_files", ())
    return ()
