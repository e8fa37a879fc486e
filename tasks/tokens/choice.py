"""Pairs of answers as prompts that end in a choice between two letters: text, tokens, and what the logits mean.

One place for training, grouping, labelling and evaluation: a model tuned with these bytes must be asked with them.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from core.errors import ConfigError
from core.types import Metrics
from tasks.base import Batch, Example, Row
from tasks.data.base import CONFIDENCE
from tasks.tokens.encode import Encoder, Text
from tasks.tokens.formats import Message, text_of

CUE = "### YOUR CHOICE:"
POST = re.compile(  # the prompts of TL;DR data as TRL has them
    r"SUBREDDIT: r/(?P<subreddit>\S+)\s+TITLE: (?P<title>.*?)\s+POST: (?P<asked>.*?)\s+TL;DR:", re.S
)
BINS = 10


@dataclass(frozen=True)
class Form:
    """How answers are shown: `post` if the prompt is a forum post to summarise (POST), else `query`."""

    query: str
    post: str


COMPARE = Form(
    query=(
        "Below is a query followed by two responses. Pick a helpful response that is precise, concise, and casual. "
        'State your choice with a single capital letter, i.e., "A" if RESPONSE A is better, "B" if RESPONSE B is '
        f"better.\n\n### QUERY: {{asked}}\n### RESPONSE A: {{one}}\n### RESPONSE B: {{two}}\n{CUE}"
    ),
    post=(
        "Below is a forum post followed by two summaries. Pick a more precise and concise one that summarizes the "
        "most important points in the given forum post, without including unimportant or irrelevant details. State "
        'your choice with a single capital letter, i.e., "A" if SUMMARY A is better, "B" if SUMMARY B is better.'
        "\n\n### SUBREDDIT: r/{subreddit}\n### TITLE: {title}\n### POST: {asked}\n### SUMMARY A: {one}\n"
        f"### SUMMARY B: {{two}}\n{CUE}"
    ),
)
RATE = Form(
    query=(
        "Below is a query followed by a response. Judge whether the response is helpful, precise, concise, and "
        'casual. State your choice with a single capital letter, i.e., "A" if it is, "B" if it is not.'
        f"\n\n### QUERY: {{asked}}\n### RESPONSE: {{one}}\n{CUE}"
    ),
    post=(
        "Below is a forum post followed by a summary. Judge whether the summary is precise, concise, and holds the "
        "most important points of the post without unimportant or irrelevant details. State your choice with a "
        'single capital letter, i.e., "A" if it does, "B" if it does not.'
        f"\n\n### SUBREDDIT: r/{{subreddit}}\n### TITLE: {{title}}\n### POST: {{asked}}\n### SUMMARY: {{one}}\n{CUE}"
    ),
)


@dataclass(frozen=True)
class Asker:
    """Pairs of answers to Examples: the first answer's prompt, the second's as `twin`, and the two letters.

    By COMPARE each prompt shows both answers, by RATE one. Answers lose the white space around them.
    A prompt above the encoder's max_length loses the start of the post or query, so that answers and cue stay;
    a pair without room for any of it is skipped and counted. `on_long_row` = skip or error hold for any cut.
    """

    encode: Encoder
    form: Form

    @cached_property
    def letters(self) -> tuple[int, int]:
        """The tokens of A and B after the cue, with a space where the tokenizer has them so. Raises ConfigError."""
        for space in (" ", ""):
            cue, a, b = self.encode.ids([CUE, f"{CUE}{space}A", f"{CUE}{space}B"])
            if a[:-1] == b[:-1] == cue and a != b:
                return a[-1], b[-1]
        raise ConfigError(
            f"task.name: the tokenizer of this model.name writes neither ' A' and ' B' nor 'A' and 'B' after "
            f"{CUE!r} as one token each, so that it cannot be asked to choose; use another model"
        )

    def examples(self, rows: Sequence[Row]) -> list[Example]:
        """Canonical pairs, the chosen answer first."""
        made = (
            self.example(
                r["prompt"],
                r["chosen"],
                r["rejected"],
                confidence=float(r.get(CONFIDENCE, 1.0)),
                row=i,
            )
            for i, r in enumerate(rows)
        )
        return [example for example in made if example]

    def example(
        self, prompt: Text, one: Text, two: Text, *, confidence: float = 1.0, row: int = 0
    ) -> Example | None:
        """None for a pair that is too long where such pairs are skipped. Raises DataError, ConfigError."""
        asked, first, second = _plain(prompt), _plain(one), _plain(two)
        found = POST.fullmatch(asked)
        template, words = (
            (self.form.post, found.groupdict()) if found else (self.form.query, {"asked": asked})
        )

        def render(kept: str) -> list[str]:
            orders = ((first, second), (second, first))
            return [template.format(**(words | {"asked": kept}), one=a, two=b) for a, b in orders]

        ids = self._fitted(words["asked"], render, row)
        if ids is None:
            return None
        lengths = tuple(len(answer) for answer in self.encode.ids([first, second]))
        a, b = self.letters
        return Example(
            tuple(ids[0]), ((a,), (b,)), twin=tuple(ids[1]), lengths=lengths, confidence=confidence
        )

    def _fitted(self, asked: str, render: Callable[[str], list[str]], row: int) -> list[list[int]] | None:
        ids, limit = self.encode.ids(render(asked)), self.encode.max_length
        if _longest(ids) <= limit:
            return ids
        if self.encode.on_long_row == "error":
            return self.encode.refuse(
                row, "too long", f"{_longest(ids)} tokens exceed train.max-length = {limit}"
            )
        least = _longest(self.encode.ids(render("")))
        if self.encode.on_long_row == "skip" or least > limit:
            self.encode.skipped["too long"] += 1
            return None
        kept = len(asked)
        while _longest(ids) > limit:  # a guess from the mean length of a token, then less until it fits
            kept = min(kept - 1, int(kept * (limit - least) / (_longest(ids) - least)))
            ids = self.encode.ids(render(asked[len(asked) - kept :].lstrip()))
        return ids


def check_smoothing(label_smoothing: float) -> None:
    """Raises ConfigError."""
    if not 0 <= label_smoothing < 0.5:
        raise ConfigError(f"task.label-smoothing must be in [0, 0.5), got {label_smoothing}")


def with_confidence(example: Example, row: Row) -> Example:
    """The example with the row's own probability that its label is right, where it brings one."""
    return replace(example, confidence=float(row[CONFIDENCE])) if CONFIDENCE in row else example


def check_certain(examples: Sequence[Example]) -> None:
    """Raise ConfigError for labels that are not certain, for a trainer that takes every label as right."""
    if not all_certain(examples):
        raise ConfigError(
            f"train.engine = 'trl' takes every label as right, but rows bring {CONFIDENCE} below 1; use "
            "train.engine = 'accord', or remove the column"
        )


def margins(batch: Batch) -> Tensor:
    """z of both orders, (B, 2): logit of A minus logit of B, with the first answer as A and with the second."""
    logits = batch.logps.view(-1, 2, 2)
    return logits[..., 0] - logits[..., 1]


def certainty(examples: Sequence[Example], label_smoothing: float, like: Tensor) -> Tensor:
    """The probability that the first answer is the better one, (B,): its confidence c, smoothed to c (1 - 2s) + s."""
    c = torch.tensor([example.confidence for example in examples], dtype=like.dtype, device=like.device)
    return c * (1 - 2 * label_smoothing) + label_smoothing


def all_certain(examples: Sequence[Example]) -> bool:
    return all(example.confidence == 1.0 for example in examples)


def cross_entropy(z: Tensor, p: Tensor) -> Tensor:
    """-p log sigmoid(z) - (1 - p) log sigmoid(-z) of each entry: the cross-entropy over A and B alone."""
    return binary_cross_entropy_with_logits(z, p, reduction="none")


def preference(z: Tensor) -> Tensor:
    """How much the first answer is preferred, (..., B), from z of both orders, (..., B, 2): what depends on the
    order alone cancels. Its mean over several selectors is their soft vote."""
    return log_odds(z, 0.5)


def log_odds(z: Tensor, scale: float) -> Tensor:
    """That the first answer is the better one, (..., B), as a task with this reward_scale reads z, (..., B, 2)."""
    return scale * (z[..., 0] - z[..., 1])


def share_right(s: Tensor) -> float:
    """Share of entries above zero; a zero is half."""
    return float((s.detach().sign().double() + 1).mean() / 2)


def order_metrics(z: Tensor) -> Metrics:
    """Of z of both orders, (B, 2), where the first answer is the better one: `accuracy` of the two orders together,
    the mean of what either alone would have, and how often they agree."""
    first, second = z.detach().unbind(-1)
    return {
        "accuracy": share_right(preference(z)),
        "accuracy/single_order": (share_right(first) + share_right(-second)) / 2,
        "order_consistency": float((first.sign() == -second.sign()).double().mean()),
    }


def calibration_error(s: Tensor) -> float:
    """Expected calibration error of log-odds s, (B,), B > 0, that the first answer is the better one, as it is:
    the certainty of the answer picked, in BINS equal bins from 1/2 to 1, against the share that is right."""
    certain = torch.sigmoid(s.detach().double().abs())
    right = (s.detach().sign().double() + 1) / 2
    places = ((certain - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    gaps = [float((certain[places == i] - right[places == i]).sum().abs()) for i in range(BINS)]
    return sum(gaps) / len(s)


def _longest(ids: Sequence[Sequence[int]]) -> int:
    return max(map(len, ids))


def _plain(text: Text) -> str:
    """A text, or a conversation as its only turn's text, or as a transcript; tool calls as JSON."""
    if isinstance(text, str):
        return text.strip()
    if len(text) == 1:
        return _said(text[0])
    return "\n\n".join(f"{turn['role'].capitalize()}: {_said(turn)}" for turn in text)


def _said(turn: Message) -> str:
    calls = turn.get("tool_calls")
    lines = [text_of(turn).strip(), json.dumps(calls, ensure_ascii=False) if calls else ""]
    return "\n".join(line for line in lines if line)
