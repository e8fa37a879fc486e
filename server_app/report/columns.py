"""Which columns the clients read, and which columns and files they left out, as lines of the plan."""

from collections.abc import Iterable, Mapping

from core.types import Json
from server_app.report.formatting import clip, plain
from tasks.data.base import ColumnUse

MOST = 400  # characters of a line


def column_lines(said: Iterable[Mapping[str, Json]]) -> list[str]:
    """Of the hellos of all clients; a client whose policy keeps its columns to itself adds nothing."""
    facts = list(said)
    columns = [one.get("columns") for one in facts]
    used = _union(one.get("used") for one in columns if isinstance(one, dict))
    ignored = _union(one.get("ignored") for one in columns if isinstance(one, dict))
    unread = _union(one.get("unread") for one in facts)
    lines = [f"columns  {ColumnUse(used, ignored).line()}"] if used else []
    lines += [f"files    not read: {', '.join(unread)}"] if unread else []
    return [clip(line, MOST) for line in lines]


def _union(lists: Iterable[Json]) -> tuple[str, ...]:
    """Every word of several lists once, in order; what a client sends is not trusted."""
    words = [
        plain(word) for some in lists if isinstance(some, list) for word in some if isinstance(word, str)
    ]
    return tuple(dict.fromkeys(words))
