"""Lines of the plan: which columns the clients read, and which columns and files they ignore."""

from collections.abc import Iterable, Mapping

from core.types import Json
from server_app.report.formatting import clip, plain
from tasks.data.base import ColumnUse

MAX_LINE = 400  # characters


def column_lines(hellos: Iterable[Mapping[str, Json]]) -> list[str]:
    """Columns and unread files over the hellos of all clients; a client whose policy withholds them is skipped."""
    hellos = list(hellos)
    reports = [report for hello in hellos if isinstance(report := hello.get("columns"), dict)]
    used = _union(report.get("used") for report in reports)
    ignored = _union(report.get("ignored") for report in reports)
    unread = _union(hello.get("unread") for hello in hellos)
    lines = [f"columns  {ColumnUse(used, ignored).line()}"] if used else []
    lines += [f"files    not read: {', '.join(unread)}"] if unread else []
    return [clip(line, MAX_LINE) for line in lines]


def _union(lists: Iterable[Json]) -> tuple[str, ...]:
    """The distinct strings of several lists, in order; anything else in these untrusted values is ignored."""
    names = [
        plain(name) for items in lists if isinstance(items, list) for name in items if isinstance(name, str)
    ]
    return tuple(dict.fromkeys(names))
