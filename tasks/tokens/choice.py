"""Encode pairs of answers as prompts that end in a choice between the letters A and B, and interpret their logits.

Shared by training, grouping, labelling and evaluation, because a model must be queried with exactly the text that it
was tuned on.
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
POST = re.compile(  # the prompts of TL;DR data in TRL's format
    r"SUBREDDIT: r/(?P<subreddit>\S+)\s+TITLE: (?P<title>.*?)\s+POST: (?P<query>.*?)\s+TL;DR:", re.S
)
BINS = 10


@dataclass(frozen=True)
class ChoiceTemplate:
    """Templates of a choice: `post` for a prompt that is a forum post to summarise (POST), `query` for any other."""

    query: str
    post: str


COMPARE = ChoiceTemplate(
    query=(
        "Below is a query followed by two responses. Pick a helpful response that is precise, concise, and casual. "
        'State your choice with a single capital letter, i.e., "A" if RESPONSE A is better, "B" if RESPONSE B is '
        f"better.\n\n### QUERY: {{query}}\n### RESPONSE A: {{first}}\n### RESPONSE B: {{second}}\n{CUE}"
    ),
    post=(
        "Below is a forum post followed by two summaries. Pick a more precise and concise one that summarizes the "
        "most important points in the given forum post, without including unimportant or irrelevant details. State "
        'your choice with a single capital letter, i.e., "A" if SUMMARY A is better, "B" if SUMMARY B is better.'
        "\n\n### SUBREDDIT: r/{subreddit}\n### TITLE: {title}\n### POST: {query}\n### SUMMARY A: {first}\n"
        f"### SUMMARY B: {{second}}\n{CUE}"
    ),
)
RATE = ChoiceTemplate(
    query=(
        "Below is a query followed by a response. Judge whether the response is helpful, precise, concise, and "
        'casual. State your choice with a single capital letter, i.e., "A" if it is, "B" if it is not.'
        f"\n\n### QUERY: {{query}}\n### RESPONSE: {{first}}\n{CUE}"
    ),
    post=(
        "Below is a forum post followed by a summary. Judge whether the summary is precise, concise, and holds the "
        "most important points of the post without unimportant or irrelevant details. State your choice with a "
        'single capital letter, i.e., "A" if it does, "B" if it does not.'
        f"\n\n### SUBREDDIT: r/{{subreddit}}\n### TITLE: {{title}}\n### POST: {{query}}\n### SUMMARY: {{first}}\n{CUE}"
    ),
)


@dataclass(frozen=True)
class ChoiceEncoder:
    """Encode pairs of answers as Examples: a prompt, a second prompt as `twin`, and the letters as completions.

    With COMPARE each prompt shows both answers, in one order and in the other; with RATE each shows one answer.
    Answers are stripped. A prompt longer than the encoder's max_length loses the start of the post or query, so that
    answers and cue stay; a pair whose answers leave no room is skipped and counted. With `on_long_row` = skip or
    error, no prompt is cut.
    """

    encode: Encoder
    template: ChoiceTemplate

    @cached_property
    def letters(self) -> tuple[int, int]:
        """The token ids of A and B after the cue, with a leading space if that gives one token each.

        Raises ConfigError for a tokenizer that has neither form.
        """
        for space in (" ", ""):
            cue, a, b = self.encode.ids([CUE, f"{CUE}{space}A", f"{CUE}{space}B"])
            if a[:-1] == b[:-1] == cue and a != b:
                return a[-1], b[-1]
        raise ConfigError(
            f"task.name: the tokenizer of this model.name writes neither ' A' and ' B' nor 'A' and 'B' after "
            f"{CUE!r} as one token each, so the model cannot choose between letters; use another model"
        )

    def examples(self, rows: Sequence[Row]) -> list[Example]:
        """The Examples of canonical pairs, with the chosen answer first; skipped pairs are left out."""
        examples = (
            self.example(
                r["prompt"],
                r["chosen"],
                r["rejected"],
                confidence=float(r.get(CONFIDENCE, 1.0)),
                row=i,
            )
            for i, r in enumerate(rows)
        )
        return [example for example in examples if example]

    def example(
        self, prompt: Text, first: Text, second: Text, *, confidence: float = 1.0, row: int = 0
    ) -> Example | None:
        """The Example of two answers to a prompt; None for a pair that is skipped as too long.

        Raises DataError for a pair that is too long where that is an error, and ConfigError; see `letters`.
        """
        query, answer_1, answer_2 = _plain_text(prompt), _plain_text(first), _plain_text(second)
        post = POST.fullmatch(query)
        template, fields = (
            (self.template.post, post.groupdict()) if post else (self.template.query, {"query": query})
        )

        def render(query: str) -> list[str]:
            orders = ((answer_1, answer_2), (answer_2, answer_1))
            return [template.format(**(fields | {"query": query}), first=a, second=b) for a, b in orders]

        ids = self._fit(fields["query"], render, row)
        if ids is None:
            return None
        lengths = tuple(len(answer) for answer in self.encode.ids([answer_1, answer_2]))
        a, b = self.letters
        return Example(
            tuple(ids[0]), ((a,), (b,)), twin=tuple(ids[1]), lengths=lengths, confidence=confidence
        )

    def _fit(self, query: str, render: Callable[[str], list[str]], row: int) -> list[list[int]] | None:
        """Token ids of the rendered prompts, with the start of the query cut as needed; None for a skipped pair."""
        ids, limit = self.encode.ids(render(query)), self.encode.max_length
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
        # Estimate the number of characters to keep from the mean length of a token, then reduce it until they fit.
        length = len(query)
        while _longest(ids) > limit:
            length = min(length - 1, int(length * (limit - least) / (_longest(ids) - least)))
            ids = self.encode.ids(render(query[len(query) - length :].lstrip()))
        return ids


def check_smoothing(label_smoothing: float) -> None:
    """Raises ConfigError unless label_smoothing is in [0, 0.5)."""
    if not 0 <= label_smoothing < 0.5:
        raise ConfigError(f"task.label-smoothing must be in [0, 0.5), got {label_smoothing}")


def with_confidence(example: Example, row: Row) -> Example:
    """The example with the row's label_confidence, if the row has one."""
    return replace(example, confidence=float(row[CONFIDENCE])) if CONFIDENCE in row else example


def check_certain(examples: Sequence[Example]) -> None:
    """Raises ConfigError for uncertain labels, which TRL's trainers do not support."""
    if not all_certain(examples):
        raise ConfigError(
            f"train.engine = 'trl' takes every label as right, but rows have {CONFIDENCE} below 1; use "
            "train.engine = 'accord', or remove the column"
        )


def margins(batch: Batch) -> Tensor:
    """z of both orders, (B, 2): logit of A minus logit of B, with the first answer as A and with the second."""
    logits = batch.logps.view(-1, 2, 2)
    return logits[..., 0] - logits[..., 1]


def certainty(examples: Sequence[Example], label_smoothing: float, like: Tensor) -> Tensor:
    """The probability that the first answer is better, (B,): the confidence c smoothed to c (1 - 2s) + s.

    like: a tensor whose dtype and device the result has.
    """
    c = torch.tensor([example.confidence for example in examples], dtype=like.dtype, device=like.device)
    return c * (1 - 2 * label_smoothing) + label_smoothing


def all_certain(examples: Sequence[Example]) -> bool:
    return all(example.confidence == 1.0 for example in examples)


def cross_entropy(z: Tensor, p: Tensor) -> Tensor:
    """-p log sigmoid(z) - (1 - p) log sigmoid(-z) of each entry: the cross-entropy over A and B alone."""
    return binary_cross_entropy_with_logits(z, p, reduction="none")


def preference(z: Tensor) -> Tensor:
    """How much the first answer is preferred, (..., B), from z of both orders, (..., B, 2).

    A bias for a position cancels. The mean over several selectors is their soft vote.
    """
    return log_odds(z, 0.5)


def log_odds(z: Tensor, scale: float) -> Tensor:
    """Log-odds that the first answer is better, (..., B), from z of both orders, (..., B, 2).

    scale: the reward_scale of the task.
    """
    return scale * (z[..., 0] - z[..., 1])


def share_right(s: Tensor) -> float:
    """The share of entries above zero, where a zero counts half."""
    return float((s.detach().sign().double() + 1).mean() / 2)


def order_metrics(z: Tensor) -> Metrics:
    """Metrics from z of both orders, (B, 2), where the first answer is the better one.

    `accuracy` of the two orders together, the mean accuracy of each order alone, and how often the two agree.
    """
    first, second = z.detach().unbind(-1)
    return {
        "accuracy": share_right(preference(z)),
        "accuracy/single_order": (share_right(first) + share_right(-second)) / 2,
        "order_consistency": float((first.sign() == -second.sign()).double().mean()),
    }


def calibration_error(s: Tensor) -> float:
    """Expected calibration error of log-odds s, (B,), B > 0, of pairs whose first answer is the better one.

    Compares the certainty of the picked answer with the share of right picks, in BINS equal bins from 1/2 to 1.
    """
    certain = torch.sigmoid(s.detach().double().abs())
    right = (s.detach().sign().double() + 1) / 2
    bins = ((certain - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    gaps = [float((certain[bins == i] - right[bins == i]).sum().abs()) for i in range(BINS)]
    return sum(gaps) / len(s)


def _longest(ids: Sequence[Sequence[int]]) -> int:
    return max(map(len, ids))


def _plain_text(text: Text) -> str:
    """A string as it is, one turn as its text, several turns as a transcript; tool calls as JSON."""
    if isinstance(text, str):
        return text.strip()
    if len(text) == 1:
        return _turn_text(text[0])
    return "\n\n".join(f"{turn['role'].capitalize()}: {_turn_text(turn)}" for turn in text)


def _turn_text(turn: Message) -> str:
    calls = turn.get("tool_calls")
    lines = [text_of(turn).strip(), json.dumps(calls, ensure_ascii=False) if calls else ""]
    return "\n".join(line for line in lines if line)
