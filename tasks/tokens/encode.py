"""Encode canonical rows as token ids, in the same way for training and for generation."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import jinja2

from core.errors import ConfigError, DataError
from tasks.base import Example
from tasks.data.reading.places import Place
from tasks.tokens.chat import ChatTemplate, common_length
from tasks.tokens.formats import FormatError, Message, plain_text_of, render

if TYPE_CHECKING:
    from transformers import (
        PreTrainedTokenizerBase,
    )  # its import would delay the command line by half a second

Text = str | Sequence[Message]  # a string or a conversation
DIFFERS = "a prompt has other tokens alone than before its answer: these are left out"
NO_CALLS = "the chat template does not write the tool calls"
REMARKS = (DIFFERS, NO_CALLS)


class Encoder:
    """Encode prompts with their completions as Examples of at most `max_length` tokens.

    Token ids equal those of TRL 1.16. Chat: the rendered template, without tokens that the tokenizer would add. Other
    formats: the tokenised text, with BOS or any other prefix of the tokenizer, and EOS after a completion that does
    not end in it. A text that begins with BOS then has two, and a tokenizer that adds EOS itself doubles it.

    A prompt and each completion are tokenised together; the prompt's tokens are their common prefix with the prompt
    alone, because tokens may merge across the border and a template may render a prompt alone differently. Rows where
    that happens are counted in `remarks`, as are rows whose tool calls the template does not write.

    on_long_row: a row that is too long is truncated (first the start of the prompt, except BOS, then the ends of
    completions), skipped and counted in `skipped`, or treated as a bad row. on_bad_row: a bad row raises DataError or
    is skipped and counted. Messages name rows by their `places`, or by number without them, and never quote them.

    Raises ConfigError for a chat template that cannot be used (tasks/tokens/chat.py).
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        prompt_format: str,
        max_length: int,
        on_long_row: str = "truncate",
        *,
        on_bad_row: str = "error",
        places: Sequence[Place] = (),
        vocabulary: int = 0,
    ) -> None:
        """vocabulary: the number of token ids that the model has an embedding for; 0 skips the check."""
        if prompt_format == "chat" and not tokenizer.chat_template:
            raise ConfigError(
                "data.prompt-format = 'chat', but the tokenizer has no chat template; use 'alpaca'"
            )
        if max_length < 2:
            raise ConfigError(f"train.max-length must be at least 2, got {max_length}")
        if prompt_format == "auto":
            prompt_format = "chat" if tokenizer.chat_template else "alpaca"
        self.tokenizer = tokenizer
        self.prompt_format = prompt_format
        self.max_length = max_length
        self.on_long_row = on_long_row
        self.on_bad_row = on_bad_row
        self.vocabulary = vocabulary
        self.places = places
        self.skipped: Counter[str] = Counter()
        self.remarks: Counter[str] = Counter()  # on rows that are used; keys are REMARKS
        self._chat = ChatTemplate(tokenizer) if prompt_format == "chat" else None
        self._prefix, self._suffix = _added_tokens(tokenizer)

    def example(
        self, prompt: Text, completions: Sequence[Text], label: bool | None = None, *, row: int = 0
    ) -> Example | None:
        """The Example of a row; None for a row that is skipped. Raises DataError for a bad row.

        row: its index in `places`.
        """
        try:
            texts = self._texts(prompt, completions)
        except (FormatError, jinja2.TemplateError) as error:
            return self.refuse(row, _reason(error))
        ids = self._tokens(texts)
        if self.vocabulary and any(token >= self.vocabulary for row_ids in ids for token in row_ids):
            return self.refuse(row, "holds a special token that the model has no embedding for")
        shared = min(common_length(ids[0], sequence) for sequence in ids[1:])
        head, tails = ids[0][:shared], [sequence[shared:] for sequence in ids[1:]]
        if not head:
            return self.refuse(row, "the prompt is empty and the tokenizer has no BOS to start from")
        if not all(tails):
            return self.refuse(row, "an answer has no tokens after the prompt")
        example = self._fit(head, tails, label, row)
        if example and shared < len(self._without_suffix(ids[0])):
            self.remarks[DIFFERS] += 1
        return example

    def prompt(self, prompt: Text) -> tuple[int, ...]:
        """The token ids to generate from: those that precede a plain answer in training.

        A prompt of more than `max_length` tokens loses its start. Raises DataError for a prompt that cannot be used.
        """
        try:
            texts = self._chat.prompt(_turns(prompt, "user")) if self._chat else self._texts(prompt, [])
        except (FormatError, jinja2.TemplateError) as error:
            raise DataError(f"a prompt to answer: {_reason(error)}") from None
        alone, *answered = self._tokens(texts)
        shared = (alone[: common_length(alone, answered[0])] or alone) if answered else None
        ids = self._without_suffix(alone) if shared is None else shared
        return tuple(_cut(ids, self.max_length, self._prefix_length(ids)))

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end an answer: EOS, and the token that the chat template writes after an answer."""
        turn = self._chat.end_of_turn if self._chat else None
        return tuple(dict.fromkeys([end_token(self.tokenizer), *([] if turn is None else [turn])]))

    @property
    def notes(self) -> list[str]:
        """Unusual properties of the chat template, for the plan."""
        return self._chat.notes() if self._chat else []

    def refuse(self, row: int, reason: str, message: str = "") -> None:
        """Skip a bad row and count it by reason, or raise DataError with its place and the message.

        message: defaults to the reason.
        """
        if self.on_bad_row == "skip":
            self.skipped[reason] += 1
            return
        place = self.places[row] if self.places else Place(f"row {row}")
        raise DataError(f"{place.where}: {message or reason}", names=[place.file])

    def _texts(self, prompt: Text, completions: Sequence[Text]) -> list[str]:
        """The text of the prompt alone, then the prompt with each completion."""
        if self._chat:
            turns = _turns(prompt, "user")
            answers = [_turns(completion, "assistant") for completion in completions]
            texts = [self._chat.render(turns, generation=True)]
            texts += [self._chat.render(turns + answer) for answer in answers]
            if not self._chat.writes_calls and any(t.get("tool_calls") for t in sum(answers, turns)):
                self.remarks[NO_CALLS] += 1
            return texts
        eos = str(self.tokenizer.eos_token)
        start, separator = render(prompt, self.prompt_format, eos)
        answers = [_content(completion) for completion in completions]
        return [start, *(f"{start}{separator}{a}{'' if a.endswith(eos) else eos}" for a in answers)]

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=self._chat is None).input_ids

    def ids(self, texts: list[str]) -> list[list[int]]:
        """The token ids of texts without a prompt format, with the tokenizer's prefix (such as BOS) exactly once."""
        prefix = self._prefix
        rows = self.tokenizer(texts, add_special_tokens=False).input_ids
        return [ids if ids[: len(prefix)] == prefix else prefix + ids for ids in rows]

    def _without_suffix(self, ids: list[int]) -> list[int]:
        """The tokens of a prompt without those that the tokenizer adds at the end of a text."""
        suffix_length = 0 if self._chat else len(self._suffix)
        return ids[: len(ids) - suffix_length]

    def _prefix_length(self, ids: list[int]) -> int:
        """The number of tokens at the start of a prompt that a cut leaves: the tokenizer's prefix, or BOS."""
        if self._prefix and ids[: len(self._prefix)] == self._prefix:
            return len(self._prefix)
        return int(ids[:1] == [self.tokenizer.bos_token_id])

    def _fit(self, head: list[int], tails: list[list[int]], label: bool | None, row: int) -> Example | None:
        """The Example of a prompt (head) and its completions (tails), cut, skipped or refused if it is too long."""
        longest = max(map(len, tails))
        if len(head) + longest > self.max_length:
            if self.on_long_row == "skip":
                self.skipped["too long"] += 1
                return None
            if self.on_long_row == "error":
                tokens = f"{len(head)} prompt + {longest} completion tokens"
                return self.refuse(row, "too long", f"{tokens} exceed train.max-length = {self.max_length}")
            head = _cut(head, max(1, self.max_length - longest), self._prefix_length(head))
            tails = [tail[: self.max_length - len(head)] for tail in tails]
        return Example(tuple(head), tuple(map(tuple, tails)), label)


def _added_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer adds before and after a text."""
    bare, full = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []


def end_token(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id of EOS; load_tokenizer() refuses tokenizers without one."""
    assert isinstance(tokenizer.eos_token_id, int), tokenizer.eos_token_id
    return tokenizer.eos_token_id


def key_of(example: Example) -> str:
    """A content hash of the token ids, under which reference log-probabilities are cached."""
    parts = [example.prompt, *example.completions, example.mismatched]
    text = ";".join(",".join(map(str, part)) for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, FormatError) else "the chat template does not take its turns"


def _cut(ids: list[int], length: int, prefix: int) -> list[int]:
    """`length` of the ids: the first `prefix` of them, then the last ones."""
    if len(ids) <= length:
        return ids
    rest = length - prefix
    return ids[:prefix] + (ids[-rest:] if rest > 0 else [])


def _turns(text: Text, role: str) -> list[Message]:
    return [{"role": role, "content": text}] if isinstance(text, str) else list(text)


def _content(text: Text) -> str:
    if isinstance(text, str):
        return text
    if len(text) != 1:
        raise FormatError(f"a completion of {len(text)} turns needs prompt-format chat")
    return plain_text_of(text[0])
