"""Packing: forks as one row of tokens, every prompt once and no padding.

A fork is a prompt and the completions that share it. The row holds prompt, branch, branch, ... of each fork
in turn; a branch is a completion without its last token, from which nothing is predicted (but a reward may be read).
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
    """What the model reads (T tokens) and what it predicts (R completion tokens of C completions)."""

    ids: Tensor  # (T,) int64
    positions: Tensor  # (T,) int64: a branch continues its prompt
    rows: Tensor  # (R,) int64: the hidden state that predicts each completion token
    targets: Tensor  # (R,) int64
    counts: tuple[int, ...]  # (C,) completion tokens, in order of forks and completions
    layout: Layout
    ends: Tensor | None = None  # (C,) int64: the last token of each completion, where it is in the row


def pack(forks: Sequence[Fork], *, ends: bool = False) -> Packed:
    """Every prompt must hold a token and so must every completion: something has to predict the first one.

    ends: the last tokens are in the row as well.
    """
    cut = 0 if ends else 1
    last_tokens: list[int] = []
    ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    targets: list[int] = []
    for prompt, completions in forks:
        assert prompt, "a fork needs a prompt token to predict from"
        assert all(completions), "a completion needs a token"
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


def graft(trunk: Packed, strangers: Sequence[Tokens]) -> Packed:
    """One more completion for each fork of `trunk`, whose keys and values were kept: no prompt is read again.

    strangers: a completion for each fork, () for none. `rows` index the hidden states of the trunk followed by
    those of this row: the first token of a completion is predicted by the last token of its prompt.
    """
    ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    targets: list[int] = []
    forks = trunk.layout.forks
    starts = [0, *accumulate(stem + sum(branches) for stem, branches in forks)]
    for start, (stem, _), stranger in zip(starts, forks, strangers, strict=False):
        if not stranger:
            continue
        rows.append(start + stem - 1)
        offset = starts[-1] + len(ids)
        rows += range(offset, offset + len(stranger) - 1)
        ids += stranger[:-1]
        positions += range(stem, stem + len(stranger) - 1)
        targets += stranger
    grafts = tuple(
        (start, stem, len(stranger) - 1)
        for start, (stem, _), stranger in zip(starts, forks, strangers, strict=False)
        if stranger
    )
    return Packed(
        torch.tensor(ids, dtype=torch.int64),
        torch.tensor(positions, dtype=torch.int64),
        torch.tensor(rows, dtype=torch.int64),
        torch.tensor(targets, dtype=torch.int64),
        tuple(len(stranger) for stranger in strangers if stranger),
        Layout((), grafts=grafts, trunk=trunk.layout),
    )


def padded(forks: Sequence[Fork], filler: int) -> tuple[Tensor, Tensor, list[slice]]:
    """The same forks as one padded sequence for each completion: ids and mask (C, L), and per sequence the
    positions whose logits predict its completion."""
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
