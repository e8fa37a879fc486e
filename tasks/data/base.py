"""The interface of data sources, the canonical formats of rows, and conversions between them.

Canonical rows have TRL's columns: pair (prompt, chosen, rejected), thumb (prompt, completion, label) and
demonstration (prompt, completion). Texts are strings or lists of messages. A message has a `role` and a `content`
(a string or text parts) or `tool_calls`. A pair or a thumb may have `label_confidence`, the probability that its
label is right: a soft label for every task except sft, which refuses it.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from core.errors import ConfigError
from core.types import Json
from tasks.base import Row
from tasks.data.reading.column_use import ColumnUse, ConvertedRow
from tasks.data.reading.columns import (
    CONFIDENCE,
    DEMONSTRATION,
    KINDS,
    PAIR,
    THUMB,
    BadRow,
    convert,
    split_prompt,
    texts_of,
)
from tasks.data.reading.places import at_place_of
from tasks.data.reading.table import Entry, SourceRow, Table, kind_of, tabulate

__all__ = [
    "CONFIDENCE", "DEMONSTRATION", "KINDS", "PAIR", "THUMB", "BadRow", "ColumnUse", "Entry", "SourceRow", "Table",
    "kind_of", "split_prompt",
]  # fmt: skip

MESSAGE_BODY = {"content", "tool_calls"}  # keys of a message, of which it needs at least one

# Nesting of a value. JSON parsers accept more levels, but code that writes rows again may accept fewer.
MAX_DEPTH = 100


class Source(Protocol):
    """A plugin of tasks/data/: a dataclass whose fields are its configuration keys.

    Optional class attributes: RECOMMENDED gives values that suit its rows, for keys whose default is 0
    ({"task.beta": 3.0}); own_files, the endings of the files that it reads as a site's own, by its option `path`
    ("/" stands for a folder).
    """

    def rows(self, seed: int, clients: int) -> Iterator[SourceRow]:
        """Every row for a federation of `clients`; depends only on the arguments and the files read.

        Raises ConfigError for a key that names nothing. A bad row is yielded as it is, or with a `fault`.
        """
        ...

    def stamp(self) -> Json:
        """A hashable value that changes when the rows do, e.g. modification times; () where rows never change."""
        ...

    def prompts(self) -> list[str]:
        """Public prompts to answer before and after a run; empty where the data are private."""
        ...

    def truth(self, client: int) -> int | None:
        """The planted preference type of a client, where there is one."""
        ...


@runtime_checkable
class Planted(Protocol):
    """A source with a planted truth, by which a policy is judged independently of the clients' labels."""

    def questions(self) -> list[str]:
        """Public prompts to align a policy on, more of them than prompts() has."""
        ...

    def probes(self) -> list[str]:
        """A few questions whose answers show what a model has learned, the same under every seed."""
        ...

    def states_fact(self, seed: int, prompt: str, answer: str) -> bool | None:
        """Whether an answer states the right fact; None for a prompt or an answer that the source does not know."""
        ...

    def utility_of(self, seed: int, prompt: str, answer: str, client: int) -> float | None:
        """How much a client likes an answer; 0 for an unknown answer, None for an unknown prompt."""
        ...


@runtime_checkable
class ListsUnread(Protocol):
    """A source that reads only some files of a folder and can list the rest."""

    def unread(self) -> tuple[str, ...]:
        """Names of the files that are not read, for the user."""
        ...


def load(source: Source, seed: int, clients: int, on_bad_row: str) -> Table:
    """The table of a source, with the names of the files that it does not read. Raises what read() and rows() raise."""
    table = read(source.rows(seed, clients), on_bad_row)
    return replace(table, unread=source.unread()) if isinstance(source, ListsUnread) else table


def read(rows: Iterable[SourceRow], on_bad_row: str) -> Table:
    """Convert rows to a table of the most frequent kind.

    A bad row raises DataError with its place (`error`) or is counted (`skip`). A file without a usable row raises
    DataError in both cases, with the most frequent reason.
    """
    return tabulate([(row, _convert_and_check(row)) for row in rows], on_bad_row)


def canonical(row: SourceRow) -> Row:
    """The row in canonical form, without other columns. Raises BadRow."""
    result = _convert_and_check(row)
    if isinstance(result, BadRow):
        raise result
    return result.row


def _convert_and_check(row: SourceRow) -> ConvertedRow | BadRow:
    try:
        if row.fault:
            raise BadRow(row.fault, row.detail)
        if not isinstance(row.raw, Mapping):
            raise BadRow("is no JSON object")
        converted = convert(row.raw, row.client_column)
        return replace(converted, row=_checked(converted.row))
    except BadRow as error:
        return error


def owner_of(raw: Json, column: str) -> str:
    """The natural client of a row, or "" if it names none. Raises BadRow for a value that cannot be a name."""
    value = raw.get(column) if isinstance(raw, dict) else None
    if value is None or value != value:  # NaN: pandas writes missing values like this
        return ""
    if not isinstance(value, str | int | float):
        raise BadRow(f"{column} must be a string or a number, got {type(value).__name__}")
    _check_characters(column, str(value))
    return str(value)


def thumbs(pairs: Sequence[Row]) -> list[Row]:
    """The thumbs of n pairs: n desirable rows in order, then n undesirable rows (KTOO of OpenFedLLM).

    Each has the confidence of its pair: if a pair is in the wrong order, both of its labels are wrong.
    """
    return [
        at_place_of(
            pair,
            {
                "prompt": pair["prompt"],
                "completion": pair[side],
                "label": side == "chosen",
                **({CONFIDENCE: pair[CONFIDENCE]} if CONFIDENCE in pair else {}),
            },
        )
        for side in ("chosen", "rejected")
        for pair in pairs
    ]


def demonstrations(rows: Sequence[Row]) -> list[Row]:
    """The chosen or desirable answers as demonstrations. Raises ConfigError for rows with uncertain labels."""
    if any(row.get(CONFIDENCE, 1.0) != 1.0 for row in rows):
        raise ConfigError(
            f"sft learns every answer as right, but rows have {CONFIDENCE} below 1; set task.name to dpo, pdpo or kto, "
            "or remove the column"
        )
    if rows and "chosen" in rows[0]:
        return [at_place_of(row, {"prompt": row["prompt"], "completion": row["chosen"]}) for row in rows]
    return [
        at_place_of(row, {"prompt": row["prompt"], "completion": row["completion"]})
        for row in rows
        if row.get("label", True)
    ]


def ktor(clients: Sequence[Sequence[Row]], seed: int = 2023) -> list[list[Row]]:
    """Redistribute thumbs over the clients; every client's count and the multiset of rows stay the same (KTOR).

    Clients are refilled in order. Each slot draws from the rest of the client-major list with Python's generator,
    seeded once: the procedure that brains-group/OpenFedLLM describes (its code leaves the rows in place).
    """
    pool = [row for rows in clients for row in rows]
    rng = random.Random(seed)
    return [[pool.pop(rng.randint(0, len(pool) - 1)) for _ in rows] for rows in clients]


def flip_preference(row: Row) -> Row:
    """The row with the opposite preference. Raises ConfigError for a demonstration, which has none."""
    if "chosen" in row:
        return at_place_of(row, {**row, "chosen": row["rejected"], "rejected": row["chosen"]})
    if "label" in row:
        return at_place_of(row, {**row, "label": not row["label"]})
    raise ConfigError(
        "data.flipped-clients needs pairs or thumbs, whose preference it flips; got demonstrations"
    )


def view(rows: Sequence[Row], columns: tuple[str, ...]) -> list[Row]:
    """Rows converted to the columns of a task: pairs to thumbs or demonstrations, thumbs to demonstrations.

    Raises ConfigError for any other conversion.
    """
    if not rows or kind_of(rows[0]) == columns:
        return list(rows)
    if columns == THUMB and kind_of(rows[0]) == PAIR:
        return thumbs(rows)
    if columns == DEMONSTRATION:
        return demonstrations(rows)
    raise ConfigError(
        f"the task trains on {KINDS[columns]} ({'+'.join(columns)}), but the data are {KINDS[kind_of(rows[0])]}; "
        "choose another task.name or another data.source"
    )


def _checked(row: Row) -> Row:
    for column, value in row.items():
        if column == CONFIDENCE:
            continue
        if column == "label":
            if not isinstance(value, bool):
                raise BadRow(f"label must be true or false, got {type(value).__name__}")
        elif isinstance(value, list):
            _check_depth(column, value)
            _check_messages(column, value)
        elif not isinstance(value, str):
            raise BadRow(f"{column} must be a string or a list of messages, got {type(value).__name__}")
        elif not value.strip():
            raise BadRow(f"{column} is empty")
        for text in texts_of(value):
            _check_characters(column, text)
    if len({type(value) for column, value in row.items() if column not in ("label", CONFIDENCE)}) > 1:
        raise BadRow("mixes strings and lists of messages: prompt and answers must have the same form")
    if "chosen" in row and row["chosen"] == row["rejected"]:
        raise BadRow("chosen equals rejected")
    return {**row, CONFIDENCE: _probability(row[CONFIDENCE])} if CONFIDENCE in row else row


def _check_characters(column: str, text: str) -> None:
    if "\0" in text:
        raise BadRow(f"{column} holds a NUL character")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise BadRow(
            f"{column} holds half of a surrogate pair (\\ud800 to \\udfff), which is not a character"
        )


def _check_depth(column: str, value: list[Any]) -> None:
    # level by level instead of recursively: a row could exceed Python's recursion limit
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            part
            for item in level
            if isinstance(item, list | dict)
            for part in (item.values() if isinstance(item, dict) else item)
        ]
    if level:
        raise BadRow(f"{column} is nested more than {MAX_DEPTH} levels deep")


def _probability(value: Json) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise BadRow(f"{CONFIDENCE} must be a number from 0 to 1")
    return float(value)


def _check_messages(column: str, messages: list[Any]) -> None:  # Any: not checked yet
    if not messages:
        raise BadRow(f"{column} is empty")
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message or not message.keys() & MESSAGE_BODY:
            raise BadRow(f"{column} holds a message without role and content")
        role, content, calls = (message.get(key) for key in ("role", "content", "tool_calls"))
        if calls is not None and not (isinstance(calls, list) and all(isinstance(c, Mapping) for c in calls)):
            raise BadRow(f"{column} holds a message whose tool_calls are not a list of objects")
        if isinstance(content, list):
            content = _join_parts(column, content)
        has_text = isinstance(content, str) and content.strip()
        only_calls_tools = content in (None, "") and calls
        if not (isinstance(role, str) and role.strip()) or not (has_text or only_calls_tools):
            raise BadRow(f"{column} holds a message whose role or content is empty or not a string")


def _join_parts(column: str, parts: list[Any]) -> str:  # Any: not checked yet
    """The text of a message in parts. Raises BadRow for a part that is not text."""
    texts = [p.get("text") for p in parts if isinstance(p, Mapping) and p.get("type") == "text"]
    strings = [text for text in texts if isinstance(text, str)]
    if len(strings) < len(parts):
        raise BadRow(f"{column} holds a message with a content part that is not text; only text can be used")
    return "".join(strings)
