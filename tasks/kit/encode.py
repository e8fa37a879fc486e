"""Encoder: canonical rows to token ids, the same bytes for training and for generation."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import jinja2

from core.errors import ConfigError, DataError
from tasks.base import Example
from tasks.data.kit.places import Place
from tasks.kit.formats import Message, Unsuited, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase  # half a second that the command line need not wait for

Text = str | Sequence[Message]  # plain, or a conversation


class Encoder:
    """Prompts with their completions to Examples of at most `max_length` tokens.

    A prompt and each completion are tokenised together and the prompt is what they have in common with the
    prompt alone (as TRL does: tokens may merge across the border). BOS stands once at the front where the
    tokenizer adds one, EOS at the end of every completion that was not cut.
    A longer row is, by `on_long_row`: truncated (the start of the prompt goes first, BOS stays; then the end of
    a completion), skipped and counted in `skipped`, or a bad row. A bad row is by `on_bad_row` a DataError, or
    skipped and counted. Rows are named by their `places`, or by number where there are none; never by content.
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
    ) -> None:
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
        self.places = places
        self.skipped: Counter[str] = Counter()
        plain = tokenizer("a").input_ids
        self._bos = [tokenizer.bos_token_id] if plain[:1] == [tokenizer.bos_token_id] else []

    def example(
        self, prompt: Text, completions: Sequence[Text], label: bool | None = None, *, row: int = 0
    ) -> Example | None:
        """None for a row that is skipped. Raises DataError."""
        try:
            texts = self._texts(prompt, completions)
        except (Unsuited, jinja2.TemplateError) as error:
            return self.refuse(row, _reason(error))
        ids = self.ids(texts)
        stem = min(_common(ids[0], other) for other in ids[1:])
        if self.places and any(
            len(other) == stem for other in ids[1:]
        ):  # an answer that was sampled may be empty
            return self.refuse(row, "an answer has no tokens")
        head, tails = ids[0][:stem], [self._closed(other[stem:]) for other in ids[1:]]
        if not head:
            return self.refuse(row, "the prompt is empty and the tokenizer has no BOS to start from")
        return self._fitted(head, tails, label, row)

    def prompt(self, prompt: Text) -> tuple[int, ...]:
        """The ids to generate from; the start of a long prompt goes. Raises DataError."""
        try:
            ids = self.ids(self._texts(prompt, []))[0]
        except (Unsuited, jinja2.TemplateError) as error:
            raise DataError(f"a prompt to answer: {_reason(error)}") from None
        return tuple(_cut(ids, self.max_length, len(self._bos)))

    def refuse(self, row: int, reason: str, message: str = "") -> None:
        """Skip a row and count it by reason, or raise DataError with its place and the message, or else the reason."""
        if self.on_bad_row == "skip":
            self.skipped[reason] += 1
            return
        place = self.places[row] if self.places else Place(f"row {row}")
        raise DataError(f"{place.where}: {message or reason}", names=[place.file])

    def _texts(self, prompt: Text, completions: Sequence[Text]) -> list[str]:
        """The prompt alone, then with each completion."""
        if self.prompt_format == "chat":
            return self._chat(prompt, completions)
        start, gap = render(prompt, self.prompt_format, str(self.tokenizer.eos_token))
        return [start, *(f"{start}{gap}{_content(c)}" for c in completions)]

    def _chat(self, prompt: Text, completions: Sequence[Text]) -> list[str]:
        turns = _turns(prompt, "user")
        render_chat = self.tokenizer.apply_chat_template
        whole = [render_chat(turns + _turns(c, "assistant"), tokenize=False) for c in completions]
        return [str(render_chat(turns, tokenize=False, add_generation_prompt=True)), *map(str, whole)]

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Plain texts as they are, with BOS at the front where the tokenizer adds one."""
        bos = self._bos
        rows = self.tokenizer(texts, add_special_tokens=False).input_ids
        return [ids if not bos or ids[:1] == bos else bos + ids for ids in rows]

    def _closed(self, completion: list[int]) -> list[int]:
        eos = end_token(self.tokenizer)
        return completion if eos in completion[-4:] else [*completion, eos]  # a template may end in "<eos>\n"

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
            head = _cut(head, max(1, self.max_length - longest), len(self._bos))
            tails = [tail[: self.max_length - len(head)] for tail in tails]
        return Example(tuple(head), tuple(map(tuple, tails)), label)


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


def _common(a: list[int], b: list[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _turns(text: Text, role: str) -> list[Message]:
    return [{"role": role, "content": text}] if isinstance(text, str) else list(text)


def _content(text: Text) -> str:
    if isinstance(text, str):
        return text
    if len(text) != 1:
        raise Unsuited(f"a completion of {len(text)} turns needs prompt-format chat")
    return text[0]["content"]
