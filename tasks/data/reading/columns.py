"""The columns of a row as users bring them: which become prompt, answers and label, and which are left out.

A column that is null or blank decides nothing. One that may carry a part of the conversation, or a judgement of the
answer, is never left out: the row is refused and the column named.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from core.errors import DataError
from tasks.base import Row
from tasks.data.reading.column_names import (
    CONTEXT,
    MEDIA,
    column_names,
    has_word,
    is_fact,
    is_name,
    may_judge,
    safe_names,
    shown,
)

PAIR = ("prompt", "chosen", "rejected")
THUMB = ("prompt", "completion", "label")
DEMONSTRATION = ("prompt", "completion")
EXTRA = "label_confidence"  # of a pair or a thumb, where it has one
KINDS = {PAIR: "pairs", THUMB: "thumbs", DEMONSTRATION: "demonstrations"}
SHP_ANSWERS = ("human_ref_A", "human_ref_B")  # Stanford Human Preferences: labels == 1 is a vote for A
SHP = {"history", "labels", *SHP_ANSWERS}
ANSWERS = ("completion", "output", "response")  # the first that a row has is its completion
HUMAN_TURN, ANSWER_TURN = "\n\nHuman:", "\n\nAssistant:"  # of the transcripts of HH-RLHF
SPEAKERS = ("role", "from", "name", "type")  # of a message, and not its text

RENAME = {"question": "prompt", "query": "prompt", "input": "prompt", "answer": "completion"}  # hints


class BadRow(DataError):
    """Why a row cannot be used; never its text. `reason` is what rows are counted by, `detail` is this row's own."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class ColumnUse:
    """What became of the columns of a source; names only, and no name that may be somebody's words."""

    used: tuple[
        str, ...
    ] = ()  # canonical columns: "chosen", "prompt from instruction+input", "client from judge"
    ignored: tuple[str, ...] = ()

    def line(self) -> str:
        """`prompt from question; chosen, rejected; ignored: id`."""
        renamed = [name for name in self.used if " from " in name]
        plain = [name for name in self.used if " from " not in name]
        ignored = f"ignored: {', '.join(self.ignored)}" if self.ignored else ""
        return "; ".join(part for part in (*renamed, ", ".join(plain), ignored) if part)

    def outside(self) -> "ColumnUse":
        """What may leave a site: canonical columns, and the number of the others."""
        used = tuple(name.split(" from ")[0] for name in self.used)
        return ColumnUse(used, (f"{len(self.ignored)} others",) if self.ignored else ())


@dataclass(frozen=True)
class Converted:
    """A row in canonical form, and which column each of its own came from."""

    row: Row
    sources: Mapping[str, tuple[str, ...]]  # canonical column: the user's
    ignored: tuple[str, ...]


@dataclass
class Columns:
    """A tally of the columns of many rows."""

    sources: dict[str, dict[str, None]] = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)

    def count(self, made: Converted, client_column: str) -> None:
        for name, columns in made.sources.items():
            self.sources.setdefault(name, {}).update(dict.fromkeys(columns))
        if client_column:
            self.sources.setdefault("client", {})[client_column] = None
        self.ignored.update(name for name in made.ignored if name != client_column)

    def use(self) -> ColumnUse:
        used = []
        for name, columns in self.sources.items():
            others = [column if is_name(column) else "another column" for column in columns]
            used.append(name if others == [name] else f"{name} from {'+'.join(others)}")
        taken = {
            column for columns in self.sources.values() for column in columns
        }  # input, blank in some rows
        return ColumnUse(tuple(used), tuple(safe_names(self.ignored - taken)))


def convert(given: Mapping[str, Any], client_column: str = "") -> Converted:  # Any: not checked yet
    """A row with the columns of its kind, values unchecked. Raises BadRow where a column would be lost."""
    given = {str(name): value for name, value in given.items()}  # a CSV reader calls what is too much None
    raw = {name: value for name, value in given.items() if value is not None}
    row, sources = _renamed(raw)
    kind = next((kind for kind in KINDS if all(column in row for column in kind)), None)
    if kind is None:
        raise BadRow(_misses(given, raw))
    if kind == PAIR and "completion" in raw and "label" in raw:
        raise BadRow("is a pair and a thumb at once: drop chosen and rejected, or completion and label")
    kept = {column: row[column] for column in kind}
    sources = {column: sources[column] for column in kind}
    if EXTRA in raw:
        if kind == DEMONSTRATION:
            raise BadRow(f"has {EXTRA} and no label that it is about: add the column label, or drop {EXTRA}")
        kept[EXTRA], sources[EXTRA] = raw[EXTRA], (EXTRA,)
    taken = {name for columns in sources.values() for name in columns}
    for name in raw:
        if name in taken or name == client_column or is_fact(name, raw[name]):
            continue
        if not is_blank(raw[name]):
            _check_unused(name, raw[name], kept, sources)
    return Converted(kept, sources, tuple(name for name in given if name not in taken))


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


def is_blank(value: Any) -> bool:  # Any: not checked yet
    """Whether a value carries nothing: null, white space, or a list or object of such."""
    return all(leaf is None or (isinstance(leaf, str) and not leaf.strip()) for leaf in _leaves(value))


def texts_of(value: Any) -> Iterator[str]:
    """The strings in a value; in messages without those that name a speaker."""
    return (leaf for leaf in _leaves(value) if isinstance(leaf, str))


def _renamed(raw: Mapping[str, Any]) -> tuple[Row, dict[str, tuple[str, ...]]]:
    """Common column names to canonical ones, a prompt for pairs that hold it only implicitly, and their sources."""
    row = dict(raw)
    sources: dict[str, tuple[str, ...]] = {name: (name,) for name in raw}
    if "prompt" not in row and "instruction" in row:
        row["prompt"], sources["prompt"] = _instruction(raw)
    if raw.keys() >= SHP and raw["labels"] in (0, 1):
        better, other = SHP_ANSWERS if raw["labels"] == 1 else SHP_ANSWERS[::-1]
        row |= {"prompt": raw["history"], "chosen": raw[better], "rejected": raw[other]}
        sources |= {
            "prompt": ("history",),
            "chosen": (*SHP_ANSWERS, "labels"),
            "rejected": (*SHP_ANSWERS, "labels"),
        }
    if answer := next((name for name in ANSWERS if name in row), None):
        row["completion"], sources["completion"] = raw[answer], (answer,)
    if "prompt" not in row and "chosen" in row and "rejected" in row:
        row["prompt"], row["chosen"], row["rejected"] = _implicit(raw)
        sources["prompt"] = ("chosen", "rejected")
    return row, sources


def _instruction(raw: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """Alpaca's instruction with its input, joined by one space as OpenFedLLM does."""
    instruction, extra = raw["instruction"], raw.get("input")
    if is_blank(extra):
        return instruction, ("instruction",)
    if not (isinstance(instruction, str) and isinstance(extra, str)):
        raise BadRow("has instruction and input that are not two strings: join them in the column prompt")
    return f"{instruction} {extra}", ("instruction", "input")


def _implicit(raw: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The prompt inside two conversations, or two strings of a row that holds no other text, and both answers."""
    chosen, rejected = raw["chosen"], raw["rejected"]
    if not (isinstance(chosen, list) or (_is_transcript(chosen) and _is_transcript(rejected))):
        for name, value in raw.items():
            if name not in ("chosen", "rejected") and _is_text(value) and not is_fact(name, value):
                raise BadRow(
                    f"has no prompt, and a column {shown(name)} that may be it: rename it to prompt, or drop it"
                )
    prompt, chosen, rejected = split_prompt(chosen, rejected)
    if not prompt:
        raise BadRow("prompt is empty: chosen and rejected begin with different words; add the column prompt")
    if isinstance(prompt, list) and any(_role(rest) in ("user", "system") for rest in (chosen, rejected)):
        raise BadRow(
            "has no prompt, and chosen and rejected differ before the first answer; add the column prompt"
        )
    return prompt, chosen, rejected


def _role(messages: list[Any]) -> str:
    first = messages[0] if messages else None
    return str(first.get("role")) if isinstance(first, Mapping) else ""


def _is_transcript(text: Any) -> bool:
    return isinstance(text, str) and ANSWER_TURN in text and HUMAN_TURN in f"\n\n{text.lstrip()}"


def _check_unused(name: str, value: Any, kept: Row, sources: Mapping[str, tuple[str, ...]]) -> None:
    """Raises BadRow for a column that may hold a part of the prompt, another answer or a judgement of the answer."""
    label = shown(name)
    if has_word(name, MEDIA):
        raise BadRow(f"has a column {label}, which a model of text does not see: drop the column, or the row")
    if (has_word(name, CONTEXT) or _is_conversation(value)) and not _holds(kept, value):
        raise BadRow(
            f"has a column {label} whose text is not in the prompt: make it a part of prompt, or drop the column"
        )
    if "completion" not in kept:
        return  # chosen and rejected are the judgement
    aliased = sources["completion"] != ("completion",)
    other = name in (*ANSWERS, "chosen", "rejected") or (
        aliased and has_word(name, frozenset(["answer", *ANSWERS]))
    )
    if other and _is_text(value) and value != kept["completion"]:
        raise BadRow(
            f"has a column {label} beside {sources['completion'][0]}: drop the one that is not the answer"
        )
    if "label" not in kept and may_judge(name, value):
        raise BadRow(
            f"has a column {label} that may say how good the answer is: make it a column label of true or false, "
            "or drop it"
        )


def _is_text(value: Any) -> bool:
    return any(text.strip() for text in texts_of(value))


def _is_conversation(value: Any) -> bool:
    """A list of messages, by whatever names they call speaker and text."""
    return isinstance(value, list) and any(
        isinstance(message, Mapping) and message.keys() & {"role", "from", "content", "value"}
        for message in value
    )


def _holds(kept: Row, value: Any) -> bool:
    """Whether every text of a value stands in the prompt; a turn of a conversation may stand in an answer too."""
    spoken = kept if _is_conversation(value) else {"prompt": kept["prompt"]}
    known = _plain(" ".join(text for column in spoken.values() for text in texts_of(column)))
    return all(_is_in(_plain(text), known) for text in texts_of(value))


def _is_in(text: str, known: str) -> bool:
    """As whole words; scripts without spaces have no such borders."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(text)}(?![A-Za-z0-9])", known) is not None


def _plain(text: str) -> str:
    return " ".join(text.split())


def _leaves(value: Any) -> Iterator[Any]:
    """What lists and objects hold in the end, speakers left out; without recursion, which a row could exhaust."""
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, Mapping):
            stack += [part for key, part in item.items() if key not in SPEAKERS]
        elif isinstance(item, list | tuple):
            stack += item
        else:
            yield item


def _misses(given: Mapping[str, Any], raw: Mapping[str, Any]) -> str:
    hints = [f"{name} to {RENAME[name]}" for name in raw if name in RENAME and RENAME[name] not in raw]
    hint = f" (rename {' and '.join(dict.fromkeys(hints))})" if hints else ""
    wanted = " or ".join("+".join(kind) for kind in KINDS)
    nulls = [name for name in given if name not in raw]
    empty = f"; null: {column_names(dict.fromkeys(nulls))}" if nulls else ""
    return f"misses columns{hint}: expected {wanted}, got {column_names(raw)}{empty}"
