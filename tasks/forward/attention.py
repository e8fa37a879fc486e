"""Attention over packed forks, registered with transformers as "accord_tree".

Without a layout (padded batches, generation) it is transformers' own scaled-dot-product attention. With a layout,
each prompt attends to itself, and each branch to its prompt and to itself. The result is exact, since in a causal
model a prompt does not attend to its completions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "accord_tree"
# Of four dimensions, since transformers passes such a mask on unchanged and builds none.
NO_MASK = torch.zeros(1, 1, 1, 1)
# Arguments of attention functions that have no effect here or are checked by _not_covered; others are refused.
HANDLED = frozenset(
    {
        "dropout",
        "is_causal",
        "position_ids",
        "cache_position",
        "use_cache",
        "return_dict",
        "output_attentions",
    }
    | {"output_hidden_states", "output_router_logits", "logits_to_keep"}
)


@dataclass(frozen=True)
class Piece:
    """A span of tokens that attends causally to itself and, if `stem` is set, to the earlier span `stem`."""

    rows: slice
    stem: slice | None = None


@dataclass(eq=False)
class Layout:
    """Which token attends to which, described by lengths; shared by all layers of a pass.

    Attributes:
        forks: the lengths (prompt, (branch, branch, ...)) of each fork, in the order of the row.
        grafts: with a trunk, (start in the trunk, prompt length, branch length) of branches whose prompts are there.
        trunk: the layout of an earlier row, which holds the prompts of the grafts.
        stored: keys and values of every layer, detached; set to {} to have them stored.
        calls: the attention modules called, each with its sliding window; set to [] to have them recorded.
    """

    forks: tuple[tuple[int, tuple[int, ...]], ...]
    grafts: tuple[tuple[int, int, int], ...] = ()
    trunk: "Layout | None" = None
    stored: dict[nn.Module, tuple[Tensor, Tensor]] | None = None
    calls: list[tuple[nn.Module, int | None]] | None = None

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The spans of all prompts and non-empty branches, in the order of the row."""
        out: list[Piece] = []
        start = 0
        for stem, branches in self.forks:
            prompt = slice(start, start + stem)
            out.append(Piece(prompt))
            start += stem
            for branch in branches:
                if branch:
                    out.append(Piece(slice(start, start + branch), prompt))
                start += branch
        return tuple(out)


def tree_attention(
    module: nn.Module,
    query: Tensor,  # (1, heads, T, channels)
    key: Tensor,  # (1, key heads, T, channels)
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    accord_layout: Layout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,  # other arguments that architectures pass to their attention
) -> tuple[Tensor, None]:
    """Attention output, (1, T, heads, channels).

    transformers takes nothing else from it: what a layout records is written into its `calls` and `stored`.

    Raises:
        NotImplementedError: the module asks for something that packed attention does not cover.
    """
    if accord_layout is None:
        extra = {"scaling": scaling, "sliding_window": sliding_window, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **extra)
    if extra := _not_covered(module, attention_mask, kwargs):
        raise NotImplementedError(f"packed attention does not cover {', '.join(extra)}")
    if accord_layout.calls is not None:
        accord_layout.calls.append((module, sliding_window))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if accord_layout.trunk:
        return _grafted(accord_layout, module, query, key, value, scale, sliding_window), None
    if accord_layout.stored is not None:
        accord_layout.stored[module] = key.detach(), value.detach()
    return _forked(accord_layout, query, key, value, scale, sliding_window), None


def _not_covered(module: nn.Module, mask: Tensor | None, extra: Mapping[str, Any]) -> list[str]:
    """The names of arguments and features that a module asks for and packed attention does not cover."""
    names = [name for name, value in extra.items() if value is not None and name not in HANDLED]
    if extra.get("dropout"):
        names.append("dropout")
    if not (vars(module).get("is_causal", True) if extra.get("is_causal") is None else extra["is_causal"]):
        names.append("attention in both directions")
    if mask is not None and mask.shape != NO_MASK.shape:
        names.append("a custom mask")
    return names


def _forked(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
) -> Tensor:
    # split instead of slicing: its backward concatenates once, where each slice would fill a whole row
    sizes = [piece.rows.stop - piece.rows.start for piece in layout.pieces]
    parts = zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
    out: list[Tensor] = []
    prompt = key, value  # of the current fork; replaced by its first piece
    for piece, (q, k, v) in zip(layout.pieces, parts, strict=True):
        if piece.stem is None:
            prompt = k, v
        else:
            stem = piece.stem.stop - piece.stem.start
            k, v = torch.cat([prompt[0][:, :, :stem], k], 2), torch.cat([prompt[1][:, :, :stem], v], 2)
        out.append(_sequence(q, k, v, scale, window))
    return torch.cat(out, dim=1)


def _grafted(
    layout: Layout,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    """Attention of branches over their prompts' keys and values, stored by the trunk; without gradient."""
    assert layout.trunk, "a graft needs a trunk"
    assert layout.trunk.stored, "the trunk must store its keys and values"
    keys, values = layout.trunk.stored[module]
    out: list[Tensor] = []
    start = 0
    for at, stem, branch in layout.grafts:
        rows = slice(start, start + branch)
        if branch:
            k = torch.cat([keys[:, :, at : at + stem], key[:, :, rows]], 2)
            v = torch.cat([values[:, :, at : at + stem], value[:, :, rows]], 2)
            out.append(_sequence(query[:, :, rows], k, v, scale, window))
        start += branch
    return torch.cat(out, dim=1)


def _sequence(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
    """Causal attention of one sequence whose last positions are the queries: (1, T, heads, channels)."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if query.shape[2] == key.shape[2] and (window is None or window >= key.shape[2]):
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    else:
        mask = _band(query.shape[2], key.shape[2], window, query)
        out = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return out.transpose(1, 2)


def _band(height: int, width: int, window: int | None, like: Tensor) -> Tensor:
    """Additive mask (height, width): row i attends to `window` columns up to column width - height + i."""
    ends = torch.arange(width - height, width, device=like.device)[:, None]
    columns = torch.arange(width, device=like.device)
    visible = columns <= ends
    if window is not None:
        visible &= columns > ends - window
    blank = torch.zeros(height, width, dtype=like.dtype, device=like.device)
    return blank.masked_fill(~visible, float("-inf"))


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
