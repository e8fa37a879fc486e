"""Encoder: canonical rows to token ids, the same bytes for training and for generation."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import jinja2

from core.errors import ConfigError, DataError
from tasks.base import Example
from tasks.data.reading.places import Place
from tasks.tokens.chat import ChatTemplate, common
from tasks.tokens.formats import Message, Unsuited, plain_text_of, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase  # half a second that the command line need not wait for

Text = str | Sequence[Message]  # plain, or a conversation
DIFFERS = "a prompt has other tokens alone than before its answer: these are left out"
NO_CALLS = "the chat template does not write the tool calls"
REMARKS = (DIFFERS, NO_CALLS)


class Encoder:
    """Prompts with their completions to Examples of at most `max_length` tokens.

    Token ids are TRL 1.16's. Chat: what the template renders, without any token that the tokenizer would add. Other
    formats: what the tokenizer makes of the text, BOS or any other prefix included, with EOS behind a completion that
    does not end in it; a text that begins with BOS has two of them then, and a tokenizer that adds EOS by itself
    doubles it. A prompt and each completion are tokenised together, and the prompt is what they have in common with
    the prompt alone: tokens may merge across the border, and a template may render a prompt alone in another way.
    Rows where that happens are counted in `remarks`, as are those whose tool calls the template does not write.
    A longer row is, by `on_long_row`: truncated (the start of the prompt goes first, BOS stays; then the end of
    a completion), skipped and counted in `skipped`, or a bad row. A bad row is by `on_bad_row` a DataError, or
    skipped and counted. Rows are named by their `places`, or by number where there are none; never by content.
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
        """vocabulary: how many token ids the model knows; 0 where that is not checked."""
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
        self.remarks: Counter[str] = Counter()  # of rows that are used, by REMARKS
        self._chat = ChatTemplate(tokenizer) if prompt_format == "chat" else None
        self._prefix, self._suffix = _added(tokenizer)

    def example(
        self, prompt: Text, completions: Sequence[Text], label: bool | None = None, *, row: int = 0
    ) -> Example | None:
        """None for a row that is skipped. Raises DataError."""
        try:
            texts = self._texts(prompt, completions)
        except (Unsuited, jinja2.TemplateError) as error:
            return self.refuse(row, _reason(error))
        ids = self._tokens(texts)
        if self.vocabulary and any(token >= self.vocabulary for row_ids in ids for token in row_ids):
            return self.refuse(row, "holds a special token that the model has no embedding for")
        stem = min(common(ids[0], other) for other in ids[1:])
        head, tails = ids[0][:stem], [other[stem:] for other in ids[1:]]
        if not head:
            return self.refuse(row, "the prompt is empty and the tokenizer has no BOS to start from")
        if not all(tails):
            return self.refuse(row, "an answer has no tokens behind the prompt")
        fitted = self._fitted(head, tails, label, row)
        if fitted and stem < len(self._opened(ids[0])):
            self.remarks[DIFFERS] += 1
        return fitted

    def prompt(self, prompt: Text) -> tuple[int, ...]:
        """The ids to generate from: what training has before a plain answer. The start of a long prompt goes.

        Raises DataError.
        """
        try:
            texts = self._chat.prompt(_turns(prompt, "user")) if self._chat else self._texts(prompt, [])
        except (Unsuited, jinja2.TemplateError) as error:
            raise DataError(f"a prompt to answer: {_reason(error)}") from None
        alone, *answered = self._tokens(texts)
        ids = (alone[: common(alone, answered[0])] or alone) if answered else self._opened(alone)
        return tuple(_cut(ids, self.max_length, self._fixed(ids)))

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end an answer: EOS, and what the chat template writes after one."""
        turn = self._chat.end_of_turn if self._chat else None
        return tuple(dict.fromkeys([end_token(self.tokenizer), *([] if turn is None else [turn])]))

    @property
    def notes(self) -> list[str]:
        """What a plan has to say of the chat template."""
        return self._chat.notes() if self._chat else []

    def refuse(self, row: int, reason: str, message: str = "") -> None:
        """Skip a row and count it by reason, or raise DataError with its place and the message, or else the reason."""
        if self.on_bad_row == "skip":
            self.skipped[reason] += 1
            return
        place = self.places[row] if self.places else Place(f"row {row}")
        raise DataError(f"{place.where}: {message or reason}", names=[place.file])

    def _texts(self, prompt: Text, completions: Sequence[Text]) -> list[str]:
        """The prompt alone, then with each completion."""
        if self._chat:
            turns = _turns(prompt, "user")
            answers = [_turns(completion, "assistant") for completion in completions]
            texts = [self._chat.render(turns, generation=True)]
            texts += [self._chat.render(turns + answer) for answer in answers]
            if not self._chat.writes_calls and any(t.get("tool_calls") for t in sum(answers, turns)):
                self.remarks[NO_CALLS] += 1
            return texts
        eos = str(self.tokenizer.eos_token)
        start, gap = render(prompt, self.prompt_format, eos)
        answers = [_content(completion) for completion in completions]
        return [start, *(f"{start}{gap}{a}{'' if a.endswith(eos) else eos}" for a in answers)]

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=self._chat is None).input_ids

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Plain texts as they are, with what the tokenizer adds at the front, once."""
        start = self._prefix
        rows = self.tokenizer(texts, add_special_tokens=False).input_ids
        return [ids if ids[: len(start)] == start else start + ids for ids in rows]

    def _opened(self, ids: list[int]) -> list[int]:
        """A prompt without what the tokenizer adds at the end of a text."""
        added = 0 if self._chat else len(self._suffix)
        return ids[: len(ids) - added]

    def _fixed(self, ids: list[int]) -> int:
        """How many tokens at the front of a prompt stay when it is cut: the tokenizer's prefix, or BOS."""
        if self._prefix and ids[: len(self._prefix)] == self._prefix:
            return len(self._prefix)
        return int(ids[:1] == [self.tokenizer.bos_token_id])

    def _fitted(
        self, head: list[int], tails: list[list[int]], label: bool | None, row: int
    ) -> Example | None:
        longest = max(map(len, tails))
        if len(head) + longest > self.max_length:
            if self.on_long_row == "skip":
                self.skipped["too long"] += 1
                return None
            if self.on_long_row == "error":
                tokens = f"{len(head)} prompt + {longest} completion tokens"
                return self.refuse(row, "too long", f"{tokens} exceed train.max-length = {self.max_length}")
            head = _cut(head, max(1, self.max_length - longest), self._fixed(head))
            tails = [tail[: self.max_length - len(head)] for tail in tails]
        return Example(tuple(head), tuple(map(tuple, tails)), label)


def _added(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer puts before and after a text by itself."""
    bare, whole = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []


def end_token(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id of EOS; load_tokenizer() has made sure that there is one."""
    assert isinstance(tokenizer.eos_token_id, int), tokenizer.eos_token_id
    return tokenizer.eos_token_id


def key_of(example: Example) -> str:
    """A content hash of the token ids: what a reference log-probability is stored under."""
    parts = [example.prompt, *example.completions, example.mismatched]
    text = ";".join(",".join(map(str, part)) for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, Unsuited) else "the chat template does not take its turns"


def _cut(ids: list[int], length: int, bos: int) -> list[int]:
    """The last `length` ids, with the first `bos` of them kept at the front."""
    if len(ids) <= length:
        return ids
    rest = length - bos
    return ids[:bos] + (ids[-rest:] if rest > 0 else [])


def _turns(text: Text, role: str) -> list[Message]:
    return [{"role": role, "content": text}] if isinstance(text, str) else list(text)


def _content(text: Text) -> str:
    if isinstance(text, str):
        return text
    if len(text) != 1:
        raise Unsuited(f"a completion of {len(text)} turns needs prompt-format chat")
    return plain_text_of(text[0])
