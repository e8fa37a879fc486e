"""Prompt formats: the exact characters around a prompt, each once, for training, labelling and generation."""

from collections.abc import Sequence
from typing import Any

Message = dict[
    str, Any
]  # Any: `role` is a string, `content` one or text parts; templates read other keys too

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction} \n\n### Response:"
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions."
)


class Unsuited(ValueError):
    """A conversation that a format has no words for; the message says why, without the text."""


def text_of(turn: Message) -> str:
    """What a turn says: its content, the text parts of it in a row, or "" for a turn of tool calls alone."""
    content = turn.get("content")
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""


def plain_text_of(turn: Message) -> str:
    """The same for a format without tools. Raises Unsuited for a turn that calls some."""
    if turn.get("tool_calls"):
        raise Unsuited("a turn with tool calls needs prompt-format chat")
    return text_of(turn)


def render(prompt: str | Sequence[Message], prompt_format: str, eos: str) -> tuple[str, str]:
    """The text of a prompt in a format other than "chat", and what stands between it and the answer.

    alpaca and none hold one user turn; vicuna_v1.1 any conversation that ends with the user.
    """
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if prompt_format == "vicuna_v1.1":
        return _vicuna(turns, eos), " "
    if [turn["role"] for turn in turns] != ["user"]:
        raise Unsuited(
            f"prompt-format {prompt_format} holds one user turn, not {len(turns)} turns; use chat or vicuna_v1.1"
        )
    content = plain_text_of(turns[0])
    return (content, "") if prompt_format == "none" else (ALPACA.format(instruction=content), " ")


def _vicuna(turns: list[Message], eos: str) -> str:
    system = VICUNA
    if turns and turns[0]["role"] == "system":
        system, turns = plain_text_of(turns[0]), turns[1:]
    roles = [turn["role"] for turn in turns]
    if roles != [("user", "assistant")[i % 2] for i in range(len(turns))] or len(turns) % 2 == 0:
        raise Unsuited("prompt-format vicuna_v1.1 needs user and assistant in turn, the user last")
    text = f"{system} "
    for turn in turns:
        content = plain_text_of(turn)
        text += f"USER: {content} ASSISTANT:" if turn["role"] == "user" else f" {content}{eos}"
    return text
