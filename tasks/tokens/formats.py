"""Prompt formats: the exact text around a prompt, shared by training, labelling and generation."""

from collections.abc import Sequence
from typing import Any

# Any: `role` is a string, `content` a string or text parts, and templates may read other keys
Message = dict[str, Any]

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction} \n\n### Response:"
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions."
)


class FormatError(ValueError):
    """A conversation that a prompt format cannot express; the message does not quote its text."""


def text_of(turn: Message) -> str:
    """The text of a turn: its content, its text parts joined, or "" for a turn with tool calls only."""
    content = turn.get("content")
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""


def plain_text_of(turn: Message) -> str:
    """The text of a turn, for a format without tools. Raises FormatError for a turn with tool calls."""
    if turn.get("tool_calls"):
        raise FormatError("a turn with tool calls needs prompt-format chat")
    return text_of(turn)


def render(prompt: str | Sequence[Message], prompt_format: str, eos: str) -> tuple[str, str]:
    """The text of a prompt in a format other than "chat", and the separator between it and the answer.

    alpaca and none take a single user turn; vicuna_v1.1 takes a conversation that ends with a user turn. Raises
    FormatError for other turns.
    """
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if prompt_format == "vicuna_v1.1":
        return _vicuna(turns, eos), " "
    if [turn["role"] for turn in turns] != ["user"]:
        raise FormatError(
            f"prompt-format {prompt_format} holds one user turn, got {len(turns)} turns; use chat or vicuna_v1.1"
        )
    content = plain_text_of(turns[0])
    return (content, "") if prompt_format == "none" else (ALPACA.format(instruction=content), " ")


def _vicuna(turns: list[Message], eos: str) -> str:
    system = VICUNA
    if turns and turns[0]["role"] == "system":
        system, turns = plain_text_of(turns[0]), turns[1:]
    roles = [turn["role"] for turn in turns]
    if roles != [("user", "assistant")[i % 2] for i in range(len(turns))] or len(turns) % 2 == 0:
        raise FormatError(
            "prompt-format vicuna_v1.1 needs alternating user and assistant turns that end with the user"
        )
    text = f"{system} "
    for turn in turns:
        content = plain_text_of(turn)
        text += f"USER: {content} ASSISTANT:" if turn["role"] == "user" else f" {content}{eos}"
    return text
