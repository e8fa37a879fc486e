"""Private parts of a client after the body of the base: a bottleneck, a change of the head, a reward head.

H are the last hidden states, after the final norm. Bottleneck: Z = H + W_up gelu(W_down H), or with a gate
g = sigmoid(w_g H) per token Z = g H + (1 - g)(H + W_up gelu(W_down H)). Head: logits W Z + U V Z, at full rank
W Z + U Z; W is the frozen head of the base, so that tied embeddings need no special treatment. Reward of a completion:
w Z at its last token. All additions are computed in float32. With all tensors zero the results equal those of the model
without private parts, to the last bit.
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
RANDOM = (DOWN, RIGHT)  # initialised at random, the others with zeros


class PrivateParts:
    """The private parts of the current client; `put` loads those of another client."""

    def __init__(self, parts: Parts, weight: Tensor) -> None:
        """weight: that of the base's vocabulary head, (V, channels)."""
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
        self.on = True  # False: the frozen base
        self.states: Tensor | None = None  # Z of the last pass through the model's own head

    def join(self, head: nn.Module) -> None:
        """Register hooks on the base's own head, through which padded batches and generation go."""
        head.register_forward_pre_hook(self._mix_inputs)
        head.register_forward_hook(self._change_logits)

    def start(self, seed: int, client: int) -> Tree:
        """A client's initial tensors: W_down and V as LoRA's A, the others zero, so that results do not change."""
        out = {name: torch.zeros(t.shape) for name, t in self.tensors.items()}
        for name in RANDOM:
            if name in out:
                bound = 1 / math.sqrt(out[name].shape[1])
                out[name].uniform_(-bound, bound, generator=torch_rng_for(seed, "private", client, name))
        return out

    def put(self, tree: Mapping[str, Tensor]) -> None:
        """Load a client's tensors; an empty tree sets all to zero. TreeMismatch on other names or shapes."""
        if tree:
            same_layout(self.tensors, tree, where="private parts")
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(tree[name]) if tree else tensor.zero_()

    def moves_policy(self) -> bool:
        """Whether the parts change any log-probability."""
        return any(bool(self.tensors[name].any()) for name in (UP, LEFT) if name in self.tensors)

    def gives_rewards(self) -> bool:
        """Whether there is a reward head that is being trained or has been trained."""
        if not self.on or REWARD not in self.tensors:
            return False
        weight = self.tensors[REWARD]
        return (weight.requires_grad and torch.is_grad_enabled()) or bool(weight.any())

    def mix(self, hidden: Tensor) -> Tensor:
        """Z of H: (..., channels) -> (..., channels)."""
        if not self.on or DOWN not in self.tensors:
            return hidden
        h = hidden.to(self.tensors[DOWN].device).float()
        added = linear(gelu(linear(h, self.tensors[DOWN])), self.tensors[UP])
        if GATE in self.tensors:
            added = (1 - torch.sigmoid(h @ self.tensors[GATE]))[..., None] * added
        return (h + added).to(hidden.dtype)

    def change(self, states: Tensor) -> tuple[Tensor, Tensor] | None:
        """(s, U) of Z (R, channels), where s U^T is added to the logits; None without a change of the head."""
        if not self.on or LEFT not in self.tensors:
            return None
        z = states.float()
        return (linear(z, self.tensors[RIGHT]) if RIGHT in self.tensors else z), self.tensors[LEFT]

    def rewards(self, states: Tensor) -> Tensor:
        """Rewards (C,) of Z at the last token of each completion, (C, channels)."""
        weight = self.tensors[REWARD]
        return states.to(weight.device).float() @ weight

    @contextmanager
    def off(self) -> Iterator[None]:
        """Turn all parts off inside the context."""
        self.on, before = False, self.on
        try:
            yield
        finally:
            self.on = before

    def _mix_inputs(self, head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        self.states = self.mix(inputs[0]) if self.on else None
        return inputs if self.states is None else (self.states, *inputs[1:])

    def _change_logits(self, head: nn.Module, inputs: tuple[Any, ...], logits: Tensor) -> Tensor:
        if (change := self.change(inputs[0])) is None:
            return logits
        s, u = change
        return (logits + linear(s, u)).to(logits.dtype)
