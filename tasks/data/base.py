"""Rows: the canonical formats, how users' columns become them, and what a source of data has to offer.

Canonical rows have TRL's columns: pair (prompt, chosen, rejected), thumb (prompt, completion, label) and
demonstration (prompt, completion). Texts are strings, or lists of messages with `role` and `content`, which is a
string or text parts, or with `tool_calls`. A pair or a thumb may bring `label_confidence`, the probability that its
label is right: a soft label for every task but sft, which refuses it.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from core.errors import ConfigError, DataError
from core.types import Json
from tasks.base import Row

PAIR = ("prompt", "chosen", "rejected")
THUMB = ("prompt", "completion", "label")
DEMONSTRATION = ("prompt", "completion")
EXTRA = "label_confidence"  # of a pair or a thumb, where it has one
KINDS = {PAIR: "pairs", THUMB: "thumbs", DEMONSTRATION: "demonstrations"}
SHP_ANSWERS = ("human_ref_A", "human_ref_B")  # Stanford Human Preferences: labels == 1 is a vote for A
SHP = {"history", "labels", *SHP_ANSWERS}
SAID = {"content", "tool_calls"}  # of a message: what it says, and the tools that it calls
ANSWER_TURN = "\n\nAssistant:"  # of the transcripts of HH-RLHF


@dataclass(frozen=True)
class Found:
    """A row as a source found it, before anybody looked at it."""

    where: str  # "a.jsonl line 7", for messages
    raw: Json = None
    owner: str = ""  # its natural client; "" where unknown
    heldout: bool = False  # the source's own split
    fault: str = ""  # why it could not even be read


@dataclass(frozen=True)
class Entry:
    """A good row, in canonical form."""

    row: Row
    owner: str
    heldout: bool


@dataclass(frozen=True)
class Table:
    """All the good rows of a source, of one kind, and a count of the bad ones by reason."""

    entries: tuple[Entry, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)


class Source(Protocol):
    """A plugin of tasks/data/: a dataclass whose fields are its keys."""

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

    def utility_of(self, seed: int, prompt: str, answer: str, client: int) -> float | None:
        """How much a client likes an answer, 0 for one that is none; None for a prompt that is not of this world."""
        ...


class BadRow(DataError):
    """Why a row cannot be used; never its text."""


def read(found: Iterable[Found], on_bad_row: str) -> Table:
    """Canonical rows; a bad one raises DataError with its place (`error`) or is counted (`skip`)."""
    entries: list[Entry] = []
    skipped: Counter[str] = Counter()
    first = ""
    kind: tuple[str, ...] = ()
    for one in found:
        try:
            row = canonical(one)
            kind = kind or kind_of(row)
            if kind_of(row) != kind:
                raise BadRow(
                    f"is one of {KINDS[kind_of(row)]}, but the first good row is one of {KINDS[kind]}"
                )
        except BadRow as bad:
            skipped[str(bad)] += 1
            first = first or f"{one.where}: {bad}"
            continue
        entries.append(Entry(row, one.owner, one.heldout))
    if first and on_bad_row == "error":
        more = f"; {skipped.total() - 1} more bad rows" if skipped.total() > 1 else ""
        raise DataError(f"{first}{more} (data.on-bad-row = 'skip' leaves bad rows out and counts them)")
    return Table(tuple(entries), dict(skipped))


def canonical(found: Found) -> Row:
    """The row in canonical form, other columns left out. Raises BadRow."""
    if found.fault:
        raise BadRow(found.fault)
    if not isinstance(found.raw, Mapping):
        raise BadRow("is no JSON object")
    raw = renamed(found.raw)
    for kind in KINDS:
        if all(column in raw for column in kind):
            row = {column: raw[column] for column in kind}
            _check(row)
            if raw.get(EXTRA) is not None:
                if kind == DEMONSTRATION:
                    raise BadRow(f"has {EXTRA}, but no label: it is for {KINDS[PAIR]} and {KINDS[THUMB]}")
                row[EXTRA] = _probability(raw[EXTRA])
            return row
    wanted = " or ".join("+".join(kind) for kind in KINDS)
    raise BadRow(f"misses columns: expected {wanted}, got {_columns(found.raw)}")


def _columns(raw: Mapping[str, Any]) -> str:  # Any: not checked yet
    """The names of columns; what does not look like a name may be somebody's words, and is counted."""
    names = sorted(name for name in raw if str(name).isidentifier() and len(name) <= 32)
    others = [f"{len(raw) - len(names)} others"] if len(names) < len(raw) else []
    return "+".join(names + others) or "none"


def kind_of(row: Row) -> tuple[str, ...]:
    """The columns that a canonical row has for certain: a key of KINDS."""
    return tuple(column for column in row if column != EXTRA)


def renamed(raw: Mapping[str, Any]) -> dict[str, Any]:  # Any: not checked yet
    """Common column names to canonical ones, and a prompt for pairs that hold it only implicitly."""
    out = dict(raw)
    if "prompt" not in out and "instruction" in out:
        extra = out.get("input")  # one space, as OpenFedLLM joins them
        joined = isinstance(extra, str) and extra != "" and isinstance(out["instruction"], str)
        out["prompt"] = f"{out['instruction']} {extra}" if joined else out["instruction"]
    if raw.keys() >= SHP and raw["labels"] in (0, 1):
        better, other = SHP_ANSWERS if raw["labels"] == 1 else SHP_ANSWERS[::-1]
        out |= {"prompt": raw["history"], "chosen": raw[better], "rejected": raw[other]}
    for alias in ("output", "response"):
        if "completion" not in out and alias in out:
            out["completion"] = out[alias]
    if "prompt" not in out and "chosen" in out and "rejected" in out:
        prompt, chosen, rejected = split_prompt(out["chosen"], out["rejected"])
        out |= {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return out


def split_prompt(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:  # Any: strings or messages
    """The prompt that two full conversations share, and what follows it in each.

    Messages are cut where they first differ, transcripts at the last shared "Assistant:" turn, other
    strings at the last shared word, so that nothing of an answer is lost to the prompt (the fault of
    cutting at the first character that differs). Raises BadRow when there is nothing to compare.
    """
    if not (type(chosen) is type(rejected) and isinstance(chosen, str | list)):
        raise BadRow("has no prompt, and chosen and rejected are not two strings or two message lists")
    if chosen == rejected:
        raise BadRow("chosen equals rejected")
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    if isinstance(chosen, str):
        turn = chosen.rfind(ANSWER_TURN, 0, same)
        same = turn + len(ANSWER_TURN) if turn >= 0 else max(chosen.rfind(" ", 0, same), 0)
    elif same == min(len(chosen), len(rejected)):
        same -= 1  # one conversation goes on after the other: its last answer is the completion
    return chosen[:same], chosen[same:], rejected[same:]


def thumbs(pairs: Sequence[Row]) -> list[Row]:
    """KTOO: a client's n pairs become its n desirable rows, in order, and then its n undesirable ones.

    Each has the confidence of its pair: if the pair is the wrong way round, both labels are.
    """
    return [
        {
            "prompt": pair["prompt"],
            "completion": pair[side],
            "label": side == "chosen",
            **({EXTRA: pair[EXTRA]} if EXTRA in pair else {}),
        }
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
        return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    return [
        {"prompt": row["prompt"], "completion": row["completion"]} for row in rows if row.get("label", True)
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
        return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
    if "label" in row:
        return {**row, "label": not row["label"]}
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


def _check(row: Row) -> None:
    for column, value in row.items():
        if column == "label":
            if not isinstance(value, bool):
                raise BadRow(f"label must be true or false, got {type(value).__name__}")
        elif isinstance(value, list):
            _check_messages(column, value)
        elif not isinstance(value, str):
            raise BadRow(f"{column} must be a string or a list of messages, got {type(value).__name__}")
        elif not value.strip():
            raise BadRow(f"{column} is empty")
    if len({type(value) for column, value in row.items() if column != "label"}) > 1:
        raise BadRow("mixes strings and lists of messages")
    if "chosen" in row and row["chosen"] == row["rejected"]:
        raise BadRow("chosen equals rejected")


def _probability(value: Json) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise BadRow(f"{EXTRA} must be a number from 0 to 1")
    return float(value)


def _check_messages(column: str, messages: list[Any]) -> None:  # Any: not checked yet
    if not messages:
        raise BadRow(f"{column} is empty")
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message or not message.keys() & SAID:
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
