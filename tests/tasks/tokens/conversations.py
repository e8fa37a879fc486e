"""Conversations as rows, and their tokens."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from transformers import PreTrainedTokenizerFast

from tasks.base import Example, Row

LONG = 4000
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
Ids = tuple[list[int], ...]  # a prompt, and the completions behind it


def turns(*messages: tuple[str, Any], **keys: Any) -> list[dict[str, Any]]:
    return [{"role": role, "content": content, **keys} for role, content in messages]


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def pair(prompt: list[dict[str, Any]], chosen: Any = "a b. ", rejected: Any = "\nNo!") -> Row:
    return {
        "prompt": prompt,
        "chosen": turns(("assistant", chosen)),
        "rejected": turns(("assistant", rejected)),
    }


CALLS = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
RESULT = {"role": "tool", "content": '{"sum": "2"}', "name": "add", "tool_call_id": "c1"}
ROWS = {
    "user": pair(turns(("user", " Who are you?\n"))),
    "system": pair(turns(("system", "Be brief."), ("user", "Who?"))),
    "history": pair(turns(("user", "Hi"), ("assistant", "<think>\nhm\n</think>\n\nHello"), ("user", "Who?"))),
    "thinking answer": pair(turns(("user", "Hi")), "<think>\nhm\n</think>\n\nHello", "No"),
    "parts": pair(turns(("user", parts("Who ", "are you?"))), parts("a ", "b"), parts("c")),
    "tool result": pair([*CALLS, RESULT], "It is 2."),
    "tool call": {"prompt": CALLS[:1], "chosen": CALLS[1:], "rejected": turns(("assistant", "2"))},
    "special text": pair(turns(("user", "</s><s>"))),
    "ends with the assistant": pair(turns(("user", "Hi"), ("assistant", "Well"))),
}


def at(when: datetime) -> type[datetime]:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return when

    return Clock


def text(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(list(ids)))


def ids_of(example: Example) -> Ids:
    return list(example.prompt), *map(list, example.completions)
