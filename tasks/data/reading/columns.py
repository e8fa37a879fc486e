"""Convert a row with a user's columns to canonical form: which columns become prompt, answers and label.

Other columns are ignored, as are null and blank ones. A column that may hold part of the conversation or a judgement
of the answer is never ignored: the row is refused with an error that names the column.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from core.errors import DataError
from tasks.base import Row
from tasks.data.reading.column_names import (
    CONTEXT,
    MEDIA,
    column_names,
    has_word,
    is_fact,
    may_judge,
    printable_name,
)
from tasks.data.reading.column_use import ConvertedRow

PAIR = ("prompt", "chosen", "rejected")
THUMB = ("prompt", "completion", "label")
DEMONSTRATION = ("prompt", "completion")
CONFIDENCE = "label_confidence"  # an optional column of pairs and thumbs
KINDS = {PAIR: "pairs", THUMB: "thumbs", DEMONSTRATION: "demonstrations"}
SHP_ANSWERS = ("human_ref_A", "human_ref_B")  # Stanford Human Preferences: labels == 1 is a vote for A
SHP = {"history", "labels", *SHP_ANSWERS}
ANSWERS = ("completion", "output", "response")  # the first of these that a row has becomes its completion
HUMAN_TURN, ANSWER_TURN = "\n\nHuman:", "\n\nAssistant:"  # in the transcripts of HH-RLHF
SPEAKERS = ("role", "from", "name", "type")  # keys of a message that do not hold its text

RENAME_HINTS = {"question": "prompt", "query": "prompt", "input": "prompt", "answer": "completion"}


class BadRow(DataError):
    """A row that cannot be used, with the reason and without its text.

    Rows are counted by `reason`; `detail` holds for this row alone.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def convert(fields: Mapping[str, Any], client_column: str = "") -> ConvertedRow:  # Any: not checked yet
    """A row with the columns of its kind; their values are not checked. Raises BadRow where a column would be lost."""
    # csv.DictReader puts surplus values under the key None
    fields = {str(name): value for name, value in fields.items()}
    raw = {name: value for name, value in fields.items() if value is not None}
    renamed, sources = _rename_columns(raw)
    kind = next((kind for kind in KINDS if all(column in renamed for column in kind)), None)
    if kind is None:
        raise BadRow(_missing_columns(fields, raw))
    if kind == PAIR and "completion" in raw and "label" in raw:
        raise BadRow("is a pair and a thumb at once: drop chosen and rejected, or completion and label")
    row = {column: renamed[column] for column in kind}
    sources = {column: sources[column] for column in kind}
    if CONFIDENCE in raw:
        if kind == DEMONSTRATION:
            raise BadRow(f"has {CONFIDENCE} but no label: add the column label, or drop {CONFIDENCE}")
        row[CONFIDENCE], sources[CONFIDENCE] = raw[CONFIDENCE], (CONFIDENCE,)
    used = {name for columns in sources.values() for name in columns}
    for name in raw:
        if name in used or name == client_column or is_fact(name, raw[name]):
            continue
        if not is_blank(raw[name]):
            _check_unused(name, raw[name], row, sources)
    return ConvertedRow(row, sources, tuple(name for name in fields if name not in used))


def split_prompt(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:  # Any: strings or messages
    """Split two full conversations into their shared prompt and the two continuations.

    Messages are cut where they first differ, transcripts at the last shared "Assistant:" turn, and other strings at
    the last shared word. Cutting at the first differing character instead would move the common start of the two
    answers into the prompt. Raises BadRow when the two cannot be compared or are equal.
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
        same -= 1  # one list is a prefix of the other, so its last message is an answer
    return chosen[:same], chosen[same:], rejected[same:]


def is_blank(value: Any) -> bool:  # Any: not checked yet
    """Whether a value is null, white space, or a list or object of such values."""
    return all(leaf is None or (isinstance(leaf, str) and not leaf.strip()) for leaf in _leaves(value))


def texts_of(value: Any) -> Iterator[str]:
    """The strings in a value, except those in a message that name its speaker."""
    return (leaf for leaf in _leaves(value) if isinstance(leaf, str))


def _rename_columns(raw: Mapping[str, Any]) -> tuple[Row, dict[str, tuple[str, ...]]]:
    """Map common column names to canonical ones and add the implicit prompt of pairs.

    Returns the row and, for each of its columns, the source columns.
    """
    row = dict(raw)
    sources: dict[str, tuple[str, ...]] = {name: (name,) for name in raw}
    if "prompt" not in row and "instruction" in row:
        row["prompt"], sources["prompt"] = _instruction(raw)
    if raw.keys() >= SHP and raw["labels"] in (0, 1):
        better, worse = SHP_ANSWERS if raw["labels"] == 1 else SHP_ANSWERS[::-1]
        row |= {"prompt": raw["history"], "chosen": raw[better], "rejected": raw[worse]}
        sources |= {
            "prompt": ("history",),
            "chosen": (*SHP_ANSWERS, "labels"),
            "rejected": (*SHP_ANSWERS, "labels"),
        }
    if answer := next((name for name in ANSWERS if name in row), None):
        row["completion"], sources["completion"] = raw[answer], (answer,)
    if "prompt" not in row and "chosen" in row and "rejected" in row:
        row["prompt"], row["chosen"], row["rejected"] = _implicit_prompt(raw)
        sources["prompt"] = ("chosen", "rejected")
    return row, sources


def _instruction(raw: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """Alpaca's instruction and input joined by one space, as in OpenFedLLM, with the names of the source columns."""
    instruction, extra = raw["instruction"], raw.get("input")
    if is_blank(extra):
        return instruction, ("instruction",)
    if not (isinstance(instruction, str) and isinstance(extra, str)):
        raise BadRow("has instruction and input that are not both strings: join them in the column prompt")
    return f"{instruction} {extra}", ("instruction", "input")


def _implicit_prompt(raw: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The prompt that chosen and rejected begin with, and both answers without it.

    Plain strings (not messages or transcripts) are split only if no other column holds text that may be the prompt.
    """
    chosen, rejected = raw["chosen"], raw["rejected"]
    if not (isinstance(chosen, list) or (_is_transcript(chosen) and _is_transcript(rejected))):
        for name, value in raw.items():
            if name not in ("chosen", "rejected") and _is_text(value) and not is_fact(name, value):
                raise BadRow(
                    f"has no prompt, but a column {printable_name(name)} that may be it: rename it to prompt or drop it"
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


def _check_unused(name: str, value: Any, row: Row, sources: Mapping[str, tuple[str, ...]]) -> None:
    """Raises BadRow for a column that may hold a part of the prompt, another answer or a judgement of the answer."""
    label = printable_name(name)
    if has_word(name, MEDIA):
        raise BadRow(f"has a column {label}, which a text model cannot read: drop the column, or the row")
    if (has_word(name, CONTEXT) or _is_conversation(value)) and not _contains(row, value):
        raise BadRow(
            f"has a column {label} whose text is not in the prompt: add it to the prompt, or drop the column"
        )
    if "completion" not in row:
        return  # chosen and rejected already hold the judgement
    aliased = sources["completion"] != ("completion",)
    is_answer = name in (*ANSWERS, "chosen", "rejected") or (
        aliased and has_word(name, frozenset(["answer", *ANSWERS]))
    )
    if is_answer and _is_text(value) and value != row["completion"]:
        raise BadRow(
            f"has a column {label} beside {sources['completion'][0]}: drop the one that is not the answer"
        )
    if "label" not in row and may_judge(name, value):
        raise BadRow(
            f"has a column {label} that may say how good the answer is: turn it into a column label (true or false), "
            "or drop it"
        )


def _is_text(value: Any) -> bool:
    return any(text.strip() for text in texts_of(value))


def _is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages, under any of the common keys for speaker and text."""
    return isinstance(value, list) and any(
        isinstance(message, Mapping) and message.keys() & {"role", "from", "content", "value"}
        for message in value
    )


def _contains(row: Row, value: Any) -> bool:
    """Whether every text of a value occurs in the prompt of a row, or, for a conversation, anywhere in the row."""
    searched = row if _is_conversation(value) else {"prompt": row["prompt"]}
    text = _normalise_spaces(" ".join(part for column in searched.values() for part in texts_of(column)))
    return all(_occurs_in(_normalise_spaces(part), text) for part in texts_of(value))


def _occurs_in(part: str, text: str) -> bool:
    """Whether a part occurs in a text as whole words; word borders are checked for Latin letters and digits only."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(part)}(?![A-Za-z0-9])", text) is not None


def _normalise_spaces(text: str) -> str:
    return " ".join(text.split())


def _leaves(value: Any) -> Iterator[Any]:
    """The scalars in nested lists and objects, except under SPEAKERS.

    Iterative, because a deeply nested row could exceed Python's recursion limit.
    """
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, Mapping):
            stack += [part for key, part in item.items() if key not in SPEAKERS]
        elif isinstance(item, list | tuple):
            stack += item
        else:
            yield item


def _missing_columns(fields: Mapping[str, Any], raw: Mapping[str, Any]) -> str:
    hints = [
        f"{name} to {RENAME_HINTS[name]}"
        for name in raw
        if name in RENAME_HINTS and RENAME_HINTS[name] not in raw
    ]
    hint = f" (rename {' and '.join(dict.fromkeys(hints))})" if hints else ""
    expected = " or ".join("+".join(kind) for kind in KINDS)
    nulls = [name for name in fields if name not in raw]
    empty = f"; null: {column_names(dict.fromkeys(nulls))}" if nulls else ""
    return f"misses columns{hint}: expected {expected}, got {column_names(raw)}{empty}"
