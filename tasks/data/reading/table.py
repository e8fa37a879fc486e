"""The usable rows of a source as a table, with a count of the unusable rows by reason."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from core.errors import DataError
from core.types import Json
from tasks.base import Row
from tasks.data.reading.column_use import Columns, ColumnUse, ConvertedRow
from tasks.data.reading.columns import CONFIDENCE, KINDS, BadRow
from tasks.data.reading.places import Place, PlacedRow

log = logging.getLogger(__name__)

MAX_FILES = 3  # named in a message


@dataclass(frozen=True)
class SourceRow:
    """A row as a source read it, before any check."""

    where: str  # "a.jsonl line 7", for messages
    raw: Json = None
    owner: str = ""  # its natural client; "" where unknown
    heldout: bool = False  # by the source's own split
    fault: str = ""  # why it could not be read; "" for a row that could
    detail: str = ""  # about the fault in this row alone: "at column 12"
    file: str = ""  # "a.jsonl"; a file without any usable row is an error
    client_column: str = ""  # the column that names the owner


@dataclass(frozen=True)
class Entry:
    """A usable row in canonical form."""

    row: Row  # a PlacedRow
    owner: str
    heldout: bool


@dataclass(frozen=True)
class Table:
    """The usable rows of a source, all of one kind, and a count of the bad ones by reason."""

    entries: tuple[Entry, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    columns: ColumnUse = field(default_factory=ColumnUse)
    first: Mapping[str, str] = field(default_factory=dict)  # by reason, the place of the first bad row
    unread: tuple[str, ...] = ()  # names of other files in the same folder, which are not read


def kind_of(row: Row) -> tuple[str, ...]:
    """The required columns of a canonical row: a key of KINDS."""
    return tuple(column for column in row if column != CONFIDENCE)


def tabulate(rows: Sequence[tuple[SourceRow, ConvertedRow | BadRow]], on_bad_row: str) -> Table:
    """The table of rows that were converted or refused; see tasks.data.base.read."""
    counts = Counter(kind_of(result.row) for _, result in rows if isinstance(result, ConvertedRow))
    kind = max(counts, key=counts.__getitem__, default=())  # of equally frequent kinds, the first
    usable: list[tuple[SourceRow, ConvertedRow]] = []
    bad: list[tuple[SourceRow, BadRow]] = []
    for source_row, result in rows:
        if isinstance(result, BadRow):
            bad.append((source_row, result))
        elif kind_of(result.row) != kind:
            reason = f"is one of {KINDS[kind_of(result.row)]}, but most rows are {KINDS[kind]}"
            bad.append((source_row, BadRow(reason)))
        else:
            usable.append((source_row, result))
    _check_files(usable, bad)
    if bad and on_bad_row == "error":
        source_row, error = bad[0]
        count = f"; {len(bad) - 1} more bad rows" if len(bad) > 1 else ""
        message = f"{source_row.where}: {error}{count} (data.on-bad-row = 'skip' leaves bad rows out and counts them)"
        raise DataError(message, names=[source_row.file])
    columns = Columns()
    for source_row, converted in usable:
        columns.count(converted, source_row.client_column if source_row.owner else "")
    first: dict[str, str] = {}
    for source_row, error in bad:
        first.setdefault(error.reason, source_row.where)
    skipped = Counter(error.reason for _, error in bad)
    for reason, count in skipped.items():
        log.warning("skipped=%d first=%s reason=%s", count, first[reason], reason)
    entries = [
        Entry(PlacedRow(converted.row, Place(row.where, row.file)), row.owner, row.heldout)
        for row, converted in usable
    ]
    return Table(tuple(entries), dict(skipped), columns.use(), first)


def _check_files(
    usable: Sequence[tuple[SourceRow, ConvertedRow]], bad: Sequence[tuple[SourceRow, BadRow]]
) -> None:
    """Raises DataError for a file without a usable row, even where bad rows are skipped: it must be a mistake."""
    useless = dict.fromkeys(row.file for row, _ in bad if row.file)
    for row, _ in usable:
        useless.pop(row.file, None)
    if not useless:
        return
    file, *more_files = useless
    errors = [(row, error) for row, error in bad if row.file == file]
    reason, count = Counter(error.reason for _, error in errors).most_common(1)[0]
    first, example = next((row, error) for row, error in errors if error.reason == reason)
    message = (
        f"{file}: none of its {len(errors)} rows can be used; {count} x {example} (first at {first.where})"
    )
    if first.where == file:
        message = f"{file} {example}"
    more = f"; no usable row in {_listing(more_files)} either" if more_files else ""
    raise DataError(message + more, names=useless)


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_FILES} more" if len(names) > MAX_FILES else ""
    return ", ".join(names[:MAX_FILES]) + more
