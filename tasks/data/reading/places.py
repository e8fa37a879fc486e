"""The file and line a row was read from, attached to the row so that later messages can name them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.base import Row


@dataclass(frozen=True)
class Place:
    """Where a row was read, for messages."""

    where: str  # "north.jsonl line 7"
    file: str = ""  # "north.jsonl": the part of `where` that may identify a person; "" where there is none


class PlacedRow(dict[str, Any]):  # Any: see Row
    """A row with its place, which does not take part in comparison, hashing or serialisation."""

    def __init__(self, row: Mapping[str, Any], place: Place) -> None:
        super().__init__(row)
        self.place = place


def place_of(row: Row, number: int) -> Place:
    """The place a row was read from, or its number in the current list."""
    return row.place if isinstance(row, PlacedRow) else Place(f"row {number}")


def at_place_of(origin: Row, row: Row) -> Row:
    """`row` with the place of `origin`, from which it was derived."""
    return PlacedRow(row, origin.place) if isinstance(origin, PlacedRow) else row
