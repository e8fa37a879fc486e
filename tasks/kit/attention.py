"""Attention over packed forks, registered with transformers as "accord_tree".

Without a layout (padded batches, generation) it is transformers' own scaled-dot-product attention. With one,
each prompt attends to itself and each branch to its prompt and itself: one call of torch's kernel for a prompt
with its first branch, one for every further branch. Exact: a causal prompt does not see its continuation.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "accord_tree"
NO_MASK = torch.zeros(1, 1, 1, 1)  # four dimensions: transformers passes it on as it is, and builds none
NOT_COVERED = ("softcap", "s_aux", "position_bias", "head_mask")  # what a model may ask for beyond this


@dataclass(eq=False)
class Layout:
    """Which token attends to which, by lengths; shared by all layers of a pass.

    forks: (prompt, (branch, branch, ...)) of each fork, in the order of the row; or, with a trunk,
    grafts: (start in the trunk, prompt, branch): branches alone, whose prompts the trunk has kept.
    kept: keys and values of every layer, without graph; None unless asked for.
    """

    forks: tuple[tuple[int, tuple[int, ...]], ...]
    grafts: tuple[tuple[int, int, int], ...] = ()
    trunk: "Layout | None" = None
    kept: dict[nn.Module, tuple[Tensor, Tensor]] | None = None
    masks: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    def mask(self, stem: int, branch: int, window: int | None, like: Tensor) -> Tensor:
        """(branch, stem + branch) additive: row i sees up to column stem + i, at most `window` columns."""
        key = (stem, branch, window, like.dtype, like.device)
        if key not in self.masks:
            reach = torch.arange(stem + branch, device=like.device)
            here = reach[stem:, None]
            seen = reach <= here
            if window is not None:
                seen &= reach > here - window
            blank = torch.zeros(branch, stem + branch, dtype=like.dtype, device=like.device)
            self.masks[key] = blank.masked_fill(~seen, float("-inf"))
        return self.masks[key]


def tree_attention(
    module: nn.Module,
    query: Tensor,  # (1, heads, T, channels)
    key: Tensor,  # (1, key heads, T, channels)
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    accord_layout: Layout | None = None,
    **kwargs: Any,  # whatever the architecture hands to its attention
) -> tuple[Tensor, None]:
    """(1, T, heads, channels). Raises NotImplementedError for what packed attention does not cover."""
    if accord_layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if asked := [name for name in NOT_COVERED if kwargs.get(name) is not None]:
        raise NotImplementedError(f"packed attention does not cover {', '.join(asked)}")
    groups = query.shape[1] // key.shape[1]
    if accord_layout.kept is not None:
        accord_layout.kept[module] = key.detach(), value.detach()
    attend = _Attend(accord_layout, kwargs.get("scaling"), kwargs.get("sliding_window"), groups)
    parts = (
        attend.grafts(module, query, key, value) if accord_layout.trunk else attend.forks(query, key, value)
    )
    return torch.cat([part.transpose(1, 2) for part in parts], dim=1), None


@dataclass(frozen=True)
class _Attend:
    layout: Layout
    scale: float | None
    window: int | None
    groups: int  # query heads to a key head

    def forks(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        sizes = [
            size for stem, branches in self.layout.forks for size in (stem + sum(branches[:1]), *branches[1:])
        ]  # a prompt and its first branch are one causal sequence
        # split, not slices: its backward joins the pieces once instead of filling a whole row for each
        pieces = zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
        parts: list[Tensor] = []
        for stem, branches in self.layout.forks:
            q, k, v = next(pieces)
            parts.append(self._causal(q, k, v))
            prompt = k[:, :, :stem], v[:, :, :stem]
            for branch in branches[1:]:
                parts.append(self._branch(*next(pieces), *prompt) if branch else next(pieces)[0])
        return parts

    def grafts(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        trunk = self.layout.trunk
        assert trunk, "a graft needs a trunk"
        assert trunk.kept, "its trunk must keep its keys and values"
        keys, values = trunk.kept[module]
        sizes = [branch for _, _, branch in self.layout.grafts]
        pieces = zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
        return [
            self._branch(q, k, v, keys[:, :, start : start + stem], values[:, :, start : start + stem])
            for (start, stem, _), (q, k, v) in zip(self.layout.grafts, pieces, strict=True)
            if q.shape[2]
        ]

    def _causal(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        length = query.shape[2]
        if self.window is not None and length > self.window:
            return self._masked(query, key, value, self.layout.mask(0, length, self.window, query))
        key, value = self._repeat(key), self._repeat(value)
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.scale)

    def _branch(
        self, query: Tensor, key: Tensor, value: Tensor, stem_key: Tensor, stem_value: Tensor
    ) -> Tensor:
        mask = self.layout.mask(stem_key.shape[2], query.shape[2], self.window, query)
        key, value = torch.cat([stem_key, key], 2), torch.cat([stem_value, value], 2)
        return self._masked(query, key, value, mask)

    def _masked(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        key, value = self._repeat(key), self._repeat(value)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale)

    def _repeat(self, heads: Tensor) -> Tensor:
        return heads if self.groups == 1 else heads.repeat_interleave(self.groups, dim=1)


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
