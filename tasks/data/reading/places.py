"""Where a row was read, carried beside it: every later message about the row can name file and line."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.base import Row


@dataclass(frozen=True)
class Place:
    """A place for messages. `file` is the name in `where` that may identify a person; "" where none does."""

    where: str  # "north.jsonl line 7"
    file: str = ""  # "north.jsonl"


class Placed(dict[str, Any]):  # Any: see Row
    """A row that knows its place; it equals the plain row, and is hashed, written and sent as the plain row."""

    def __init__(self, row: Mapping[str, Any], place: Place) -> None:
        super().__init__(row)
        self.place = place


def place_of(row: Row, number: int) -> Place:
    """Where a row was read, or its number among the rows at hand."""
    return row.place if isinstance(row, Placed) else Place(f"row {number}")


def at_place_of(origin: Row, row: Row) -> Row:
    """A row made from `origin`, at the same place."""
    return Placed(row, origin.place) if isinstance(origin, Placed) else row
