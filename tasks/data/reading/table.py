"""The good rows of a source as a table, and what became of the others."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from core.errors import DataError
from core.types import Json
from tasks.base import Row
from tasks.data.reading.columns import EXTRA, KINDS, BadRow, Columns, ColumnUse, Converted
from tasks.data.reading.places import Place, Placed

log = logging.getLogger(__name__)

MOST_FILES = 3  # named in a message


@dataclass(frozen=True)
class Found:
    """A row as a source found it, before anybody looked at it."""

    where: str  # "a.jsonl line 7", for messages
    raw: Json = None
    owner: str = ""  # its natural client; "" where unknown
    heldout: bool = False  # the source's own split
    fault: str = ""  # why it could not even be read
    detail: str = ""  # of the fault, in this row alone: "at column 12"
    file: str = ""  # "a.jsonl": each file is expected to hold a usable row
    client_column: str = ""  # where the owner stands


@dataclass(frozen=True)
class Entry:
    """A good row, in canonical form."""

    row: Row  # a Placed
    owner: str
    heldout: bool


@dataclass(frozen=True)
class Table:
    """All the good rows of a source, of one kind, and a count of the bad ones by reason."""

    entries: tuple[Entry, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    columns: ColumnUse = field(default_factory=ColumnUse)
    first: Mapping[str, str] = field(default_factory=dict)  # by reason, where the first of the bad ones is
    unread: tuple[str, ...] = ()  # names of files beside the rows that are not read


def kind_of(row: Row) -> tuple[str, ...]:
    """The columns that a canonical row has for certain: a key of KINDS."""
    return tuple(column for column in row if column != EXTRA)


def tabulate(made: Sequence[tuple[Found, Converted | BadRow]], on_bad_row: str) -> Table:
    """The table of rows that were converted or refused; see tasks.data.base.read."""
    counts = Counter(kind_of(row.row) for _, row in made if isinstance(row, Converted))
    kind = max(counts, key=counts.__getitem__, default=())  # the first of equals
    good: list[tuple[Found, Converted]] = []
    bad: list[tuple[Found, BadRow]] = []
    for one, row in made:
        if isinstance(row, BadRow):
            bad.append((one, row))
        elif kind_of(row.row) != kind:
            bad.append((one, BadRow(f"is one of {KINDS[kind_of(row.row)]}, but most rows are {KINDS[kind]}")))
        else:
            good.append((one, row))
    _check_files(good, bad)
    if bad and on_bad_row == "error":
        one, reason = bad[0]
        more = f"; {len(bad) - 1} more bad rows" if len(bad) > 1 else ""
        message = (
            f"{one.where}: {reason}{more} (data.on-bad-row = 'skip' leaves bad rows out and counts them)"
        )
        raise DataError(message, names=[one.file])
    columns = Columns()
    for one, row in good:
        columns.count(row, one.client_column if one.owner else "")
    first: dict[str, str] = {}
    for one, reason in bad:
        first.setdefault(reason.reason, one.where)
    skipped = Counter(reason.reason for _, reason in bad)
    for reason, count in skipped.items():
        log.warning("skipped=%d first=%s reason=%s", count, first[reason], reason)
    entries = [
        Entry(Placed(row.row, Place(one.where, one.file)), one.owner, one.heldout) for one, row in good
    ]
    return Table(tuple(entries), dict(skipped), columns.use(), first)


def _check_files(good: Sequence[tuple[Found, Converted]], bad: Sequence[tuple[Found, BadRow]]) -> None:
    """Raises DataError for a file whose rows are all bad: nobody means to hand in such a file."""
    useless = dict.fromkeys(one.file for one, _ in bad if one.file)
    for one, _ in good:
        useless.pop(one.file, None)
    if not useless:
        return
    file, *others = useless
    reasons = [(one, reason) for one, reason in bad if one.file == file]
    common, count = Counter(reason.reason for _, reason in reasons).most_common(1)[0]
    first, example = next((one, reason) for one, reason in reasons if reason.reason == common)
    message = (
        f"{file}: none of its {len(reasons)} rows can be used; {count} x {example} (first at {first.where})"
    )
    if first.where == file:
        message = f"{file} {example}"
    more = f"; no usable row either in {_some(others)}" if others else ""
    raise DataError(message + more, names=useless)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_FILES} more" if len(names) > MOST_FILES else ""
    return ", ".join(names[:MOST_FILES]) + more
