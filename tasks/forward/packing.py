"""Packing: several forks as one row of tokens, with each prompt once and without padding.

A fork is a prompt with the completions that share it. The row holds prompt, branch, branch, ... of each fork in turn.
A branch is a completion without its last token, which predicts nothing; it is included where a reward is read from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from tasks.forward.attention import Layout

Tokens = tuple[int, ...]
Fork = tuple[Tokens, tuple[Tokens, ...]]


@dataclass(frozen=True)
class Packed:
    """One packed row: T input tokens, and the R completion tokens of C completions that they predict."""

    ids: Tensor  # (T,) int64
    positions: Tensor  # (T,) int64; the positions of a branch continue those of its prompt
    rows: Tensor  # (R,) int64: index of the hidden state that predicts each completion token
    targets: Tensor  # (R,) int64
    counts: tuple[int, ...]  # (C,) number of completion tokens, in order of forks and completions
    layout: Layout
    ends: Tensor | None = None  # (C,) int64: index of the last token of each completion, if the row holds it


def pack(forks: Sequence[Fork], *, ends: bool = False) -> Packed:
    """Pack forks into one row. Every prompt and every completion must have at least one token.

    ends: include the last token of each completion.
    """
    cut = 0 if ends else 1
    last_tokens: list[int] = []
    ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    targets: list[int] = []
    for prompt, completions in forks:
        assert prompt, "the prompt of a fork must have a token to predict from"
        assert all(completions), "a completion must have a token"
        stem = len(prompt)
        ids += prompt
        positions += range(stem)
        last = len(ids) - 1
        for completion in completions:
            rows.append(last)
            rows += range(len(ids), len(ids) + len(completion) - 1)
            ids += completion[: len(completion) - cut]
            positions += range(stem, stem + len(completion) - cut)
            targets += completion
            last_tokens.append(len(ids) - 1)
    lengths = tuple((len(prompt), tuple(len(c) - cut for c in completions)) for prompt, completions in forks)
    return Packed(
        torch.tensor(ids),
        torch.tensor(positions),
        torch.tensor(rows),
        torch.tensor(targets),
        tuple(len(c) for _, completions in forks for c in completions),
        Layout(lengths),
        torch.tensor(last_tokens) if ends else None,
    )


def graft(trunk: Packed, mismatched: Sequence[Tokens]) -> Packed:
    """Pack one more completion for each fork of `trunk`, whose layout stores keys and values of the prompts.

    mismatched: a completion for each fork, () for none. `rows` of the result index the hidden states of the trunk
    followed by those of this row, since the last token of a prompt in the trunk predicts the first completion token.
    """
    ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    targets: list[int] = []
    forks = trunk.layout.forks
    starts = [0, *accumulate(stem + sum(branches) for stem, branches in forks)]
    for start, (stem, _), completion in zip(starts, forks, mismatched, strict=False):
        if not completion:
            continue
        rows.append(start + stem - 1)
        offset = starts[-1] + len(ids)
        rows += range(offset, offset + len(completion) - 1)
        ids += completion[:-1]
        positions += range(stem, stem + len(completion) - 1)
        targets += completion
    grafts = tuple(
        (start, stem, len(completion) - 1)
        for start, (stem, _), completion in zip(starts, forks, mismatched, strict=False)
        if completion
    )
    return Packed(
        torch.tensor(ids, dtype=torch.int64),
        torch.tensor(positions, dtype=torch.int64),
        torch.tensor(rows, dtype=torch.int64),
        torch.tensor(targets, dtype=torch.int64),
        tuple(len(completion) for completion in mismatched if completion),
        Layout((), grafts=grafts, trunk=trunk.layout),
    )


def padded(forks: Sequence[Fork], filler: int) -> tuple[Tensor, Tensor, list[slice]]:
    """One padded sequence for each completion: ids and mask, (C, L), and for each sequence the span of positions whose
    logits predict its completion."""
    sequences = [prompt + completion for prompt, completions in forks for completion in completions]
    spans = [
        slice(len(prompt) - 1, len(prompt) + len(completion) - 1)
        for prompt, completions in forks
        for completion in completions
    ]
    longest = max(map(len, sequences))
    ids = torch.tensor([[*s, *[filler] * (longest - len(s))] for s in sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences])
    return ids, mask, spans
