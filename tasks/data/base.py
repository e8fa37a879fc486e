"""Rows: the canonical formats, how users' columns become them, and what a source of data has to offer.

Canonical rows have TRL's columns: pair (prompt, chosen, rejected), thumb (prompt, completion, label) and
demonstration (prompt, completion). Texts are strings, or lists of messages with `role` and `content`, which is a
string or text parts, or with `tool_calls`. A pair or a thumb may bring `label_confidence`, the probability that its
label is right: a soft label for every task but sft, which refuses it.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from core.errors import ConfigError
from core.types import Json
from tasks.base import Row
from tasks.data.reading.columns import (
    DEMONSTRATION,
    EXTRA,
    KINDS,
    PAIR,
    THUMB,
    BadRow,
    ColumnUse,
    Converted,
    convert,
    split_prompt,
    texts_of,
)
from tasks.data.reading.places import at_place_of
from tasks.data.reading.table import Entry, Found, Table, kind_of, tabulate

__all__ = [
    "DEMONSTRATION", "EXTRA", "KINDS", "PAIR", "THUMB", "BadRow", "ColumnUse", "Entry", "Found", "Table", "kind_of",
    "split_prompt",
]  # fmt: skip

MESSAGE_BODY = {"content", "tool_calls"}  # of a message: its text, and the tools that it calls

DEEPEST = 100  # levels of a value; a parser takes more, and what writes the rows again may take less


class Source(Protocol):
    """A plugin of tasks/data/: a dataclass whose fields are its keys.

    A class attribute RECOMMENDED may hold what fits its rows, of keys that are 0 unless they are set:
    {"task.beta": 3.0}.
    """

    def find(self, seed: int, clients: int) -> Iterator[Found]:
        """Every row for a federation of `clients`, a function of the arguments and of the files read.

        Raises ConfigError for a key that leads nowhere; a bad row is handed on as it is.
        """
        ...

    def stamp(self) -> Json:
        """A hashable value that changes when the rows do, e.g. the times of the files; () for a pure function."""
        ...

    def prompts(self) -> list[str]:
        """Public prompts to answer before and after a run; empty where the data are private."""
        ...

    def truth(self, client: int) -> int | None:
        """The planted preference type of a client, where there is one."""
        ...


@runtime_checkable
class Planted(Protocol):
    """A source that knows the truth and not only rows: what a policy is judged by that no client's label reached."""

    def questions(self) -> list[str]:
        """Public prompts to align a policy on, more than there are prompts() to show."""
        ...

    def probes(self) -> list[str]:
        """The questions whose answers show what a model has learned; few, the same under every seed."""
        ...

    def states_fact(self, seed: int, prompt: str, answer: str) -> bool | None:
        """Whether an answer states the right fact; None for a text that is no answer of this world."""
        ...

    def utility_of(self, seed: int, prompt: str, answer: str, client: int) -> float | None:
        """How much a client likes an answer, 0 for one that is none; None for a prompt that is not of this world."""
        ...


@runtime_checkable
class Selective(Protocol):
    """A source that reads some files of a folder and not others."""

    def unread(self) -> tuple[str, ...]:
        """Names of the others, for the user to see."""
        ...


def load(source: Source, seed: int, clients: int, on_bad_row: str) -> Table:
    """The table of a source, with the names of files that it passed over. Raises as read() and find() do."""
    table = read(source.find(seed, clients), on_bad_row)
    return replace(table, unread=source.unread()) if isinstance(source, Selective) else table


def read(found: Iterable[Found], on_bad_row: str) -> Table:
    """Canonical rows, of the kind that most are.

    A bad row raises DataError with its place (`error`) or is counted (`skip`). A file without a usable row raises
    DataError in both cases, with the commonest reason.
    """
    return tabulate([(one, _converted(one)) for one in found], on_bad_row)


def canonical(found: Found) -> Row:
    """The row in canonical form, other columns left out. Raises BadRow."""
    made = _converted(found)
    if isinstance(made, BadRow):
        raise made
    return made.row


def _converted(found: Found) -> Converted | BadRow:
    try:
        if found.fault:
            raise BadRow(found.fault, found.detail)
        if not isinstance(found.raw, Mapping):
            raise BadRow("is no JSON object")
        made = convert(found.raw, found.client_column)
        return replace(made, row=_checked(made.row))
    except BadRow as bad:
        return bad


def owner_of(raw: Json, column: str) -> str:
    """The natural client of a row, "" where it names none. Raises BadRow for a value that is no name."""
    value = raw.get(column) if isinstance(raw, dict) else None
    if value is None or value != value:  # NaN, as pandas writes a missing value
        return ""
    if not isinstance(value, str | int | float):
        raise BadRow(f"{column} must be a string or a number, got {type(value).__name__}")
    _check_characters(column, str(value))
    return str(value)


def thumbs(pairs: Sequence[Row]) -> list[Row]:
    """KTOO: a client's n pairs become its n desirable rows, in order, and then its n undesirable ones.

    Each has the confidence of its pair: if the pair is the wrong way round, both labels are.
    """
    return [
        at_place_of(
            pair,
            {
                "prompt": pair["prompt"],
                "completion": pair[side],
                "label": side == "chosen",
                **({EXTRA: pair[EXTRA]} if EXTRA in pair else {}),
            },
        )
        for side in ("chosen", "rejected")
        for pair in pairs
    ]


def demonstrations(rows: Sequence[Row]) -> list[Row]:
    """What was preferred or desired, as prompt and completion. Raises ConfigError where that is not certain."""
    if any(row.get(EXTRA, 1.0) != 1.0 for row in rows):
        raise ConfigError(
            f"sft learns every answer as right, but rows bring {EXTRA} below 1; set task.name to dpo, pdpo or kto, "
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
    """KTOR: thumbs dealt anew over the clients; every client's count and the multiset of rows stay.

    Clients are refilled in order, each slot drawing from what is left of the client-major list with
    Python's generator, seeded once: the procedure that brains-group/OpenFedLLM describes (its code leaves
    the rows where they were).
    """
    pool = [row for rows in clients for row in rows]
    rng = random.Random(seed)
    return [[pool.pop(rng.randint(0, len(pool) - 1)) for _ in rows] for rows in clients]


def flipped(row: Row) -> Row:
    """The opposite preference, in equal words. Raises ConfigError for a demonstration, which has none."""
    if "chosen" in row:
        return at_place_of(row, {**row, "chosen": row["rejected"], "rejected": row["chosen"]})
    if "label" in row:
        return at_place_of(row, {**row, "label": not row["label"]})
    raise ConfigError("data.flipped-clients turns pairs and thumbs round; the data are demonstrations")


def view(rows: Sequence[Row], columns: tuple[str, ...]) -> list[Row]:
    """Rows with the columns of a task: pairs as thumbs or demonstrations, thumbs as demonstrations.

    Raises ConfigError where no view leads there.
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
        if column == EXTRA:
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
    if len({type(value) for column, value in row.items() if column not in ("label", EXTRA)}) > 1:
        raise BadRow("mixes strings and lists of messages: prompt and answers have to be of one form")
    if "chosen" in row and row["chosen"] == row["rejected"]:
        raise BadRow("chosen equals rejected")
    return {**row, EXTRA: _probability(row[EXTRA])} if EXTRA in row else row


def _check_characters(column: str, text: str) -> None:
    if "\0" in text:
        raise BadRow(f"{column} holds a NUL character")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise BadRow(f"{column} holds half of a surrogate pair (\\ud800 to \\udfff), which is no character")


def _check_depth(column: str, value: list[Any]) -> None:
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [
            part
            for item in level
            if isinstance(item, list | dict)
            for part in (item.values() if isinstance(item, dict) else item)
        ]
    if level:
        raise BadRow(f"{column} is nested more than {DEEPEST} levels deep")


def _probability(value: Json) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise BadRow(f"{EXTRA} must be a number from 0 to 1")
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
            content = _joined(column, content)
        said = isinstance(content, str) and content.strip()
        silent = content in (None, "") and calls  # only calls tools
        if not (isinstance(role, str) and role.strip()) or not (said or silent):
            raise BadRow(f"{column} holds a message whose role or content is empty or no string")


def _joined(column: str, parts: list[Any]) -> str:  # Any: not checked yet
    texts = [p.get("text") for p in parts if isinstance(p, Mapping) and p.get("type") == "text"]
    known = [text for text in texts if isinstance(text, str)]
    if len(known) < len(parts):
        raise BadRow(f"{column} holds a message with a content part that is no text; only text can be used")
    return "".join(known)
