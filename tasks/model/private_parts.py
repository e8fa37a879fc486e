"""A client's own parts behind the body of the base: a bottleneck, a changed vocabulary head, a reward head.

H are the last hidden states, after the final norm. Bottleneck: Z = H + W_up gelu(W_down H), or with a gate
g = sigmoid(w_g H) per token Z = g H + (1 - g)(H + W_up gelu(W_down H)). Head: logits W Z + U V Z, at full rank
W Z + U Z; W is the base's, frozen, so that it does not matter whether embeddings are tied to it. Reward of a
completion: w Z at its last token. Everything that is added is computed in float32; with all tensors zero the model is
the one without parts, to the last bit.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from core.factors import PRIVATE
from core.seeds import torch_rng_for
from core.tree import Tree, same_layout
from tasks.base import Parts

DOWN, UP, GATE = (f"{PRIVATE}bottleneck.{name}" for name in ("down", "up", "gate"))  # (b, d), (d, b), (d,)
LEFT, RIGHT = f"{PRIVATE}head.left", f"{PRIVATE}head.right"  # U: (V, r) or (V, d); V: (r, d)
REWARD = f"{PRIVATE}reward.weight"  # (d,)
DRAWN = (DOWN, RIGHT)  # begin at random, the others at zero


class PrivateParts:
    """The parts of the client whose turn it is; `put` brings in another's."""

    def __init__(self, parts: Parts, weight: Tensor) -> None:
        """weight: of the base's vocabulary head, (V, channels)."""
        vocabulary, channels = weight.shape
        shapes: dict[str, tuple[int, ...]] = {}
        if parts.bottleneck:
            width = parts.width or max(16, channels // 16)
            shapes |= {DOWN: (width, channels), UP: (channels, width)}
            if parts.bottleneck == "gate":
                shapes[GATE] = (channels,)
        if parts.head:
            shapes[LEFT] = (vocabulary, parts.rank or channels)
            if parts.rank:
                shapes[RIGHT] = (parts.rank, channels)
        if parts.reward:
            shapes[REWARD] = (channels,)
        self.tensors = {n: nn.Parameter(torch.zeros(s, device=weight.device)) for n, s in shapes.items()}
        self.on = True  # off: the frozen base
        self.states: Tensor | None = None  # Z of the last whole pass through the model's own head

    def join(self, head: nn.Module) -> None:
        """Act in the base's own head as well: padded batches and generation go through it."""
        head.register_forward_pre_hook(self._before)
        head.register_forward_hook(self._behind)

    def start(self, seed: int, client: int) -> Tree:
        """Where a client begins: W_down and V as LoRA's A, the rest zero, so that nothing has changed yet."""
        out = {name: torch.zeros(t.shape) for name, t in self.tensors.items()}
        for name in DRAWN:
            if name in out:
                bound = 1 / math.sqrt(out[name].shape[1])
                out[name].uniform_(-bound, bound, generator=torch_rng_for(seed, "private", client, name))
        return out

    def put(self, tree: Mapping[str, Tensor]) -> None:
        """A client's tensors, or none: then all are zero. TreeMismatch on other names or shapes."""
        if tree:
            same_layout(self.tensors, tree, where="private parts")
        with torch.no_grad():
            for name, place in self.tensors.items():
                place.copy_(tree[name]) if tree else place.zero_()

    def moves_policy(self) -> bool:
        """Whether they change any log-probability."""
        return any(bool(self.tensors[name].any()) for name in (UP, LEFT) if name in self.tensors)

    def gives_rewards(self) -> bool:
        """Whether a reward is to be read: its head learns, or has learned."""
        if not self.on or REWARD not in self.tensors:
            return False
        weight = self.tensors[REWARD]
        return (weight.requires_grad and torch.is_grad_enabled()) or bool(weight.any())

    def mix(self, hidden: Tensor) -> Tensor:
        """Z of H: (..., channels) -> the same."""
        if not self.on or DOWN not in self.tensors:
            return hidden
        h = hidden.to(self.tensors[DOWN].device).float()
        more = linear(gelu(linear(h, self.tensors[DOWN])), self.tensors[UP])
        if GATE in self.tensors:
            more = (1 - torch.sigmoid(h @ self.tensors[GATE]))[..., None] * more
        return (h + more).to(hidden.dtype)

    def change(self, states: Tensor) -> tuple[Tensor, Tensor] | None:
        """(s, U) of Z (R, channels): s U^T is what the head's change adds to the logits; None without one."""
        if not self.on or LEFT not in self.tensors:
            return None
        z = states.float()
        return (linear(z, self.tensors[RIGHT]) if RIGHT in self.tensors else z), self.tensors[LEFT]

    def rewards(self, states: Tensor) -> Tensor:
        """(C,) of Z at the last token of each completion, (C, channels)."""
        weight = self.tensors[REWARD]
        return states.to(weight.device).float() @ weight

    @contextmanager
    def off(self) -> Iterator[None]:
        self.on, before = False, self.on
        try:
            yield
        finally:
            self.on = before

    def _before(self, head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        self.states = self.mix(inputs[0]) if self.on else None
        return inputs if self.states is None else (self.states, *inputs[1:])

    def _behind(self, head: nn.Module, inputs: tuple[Any, ...], logits: Tensor) -> Tensor:
        if (change := self.change(inputs[0])) is None:
            return logits
        s, left = change
        return (logits + linear(s, left)).to(logits.dtype)
