"""One optimiser step, from the gradients that stand in the flat tensor to the next weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.sections import TrainConfig
from core.tree import Tree
from tasks.base import everything
from tasks.model.flat import Flat

Correct = Callable[[str, Tensor, Tensor], Tensor]  # (name, parameter, gradient) -> gradient
AfterStep = Callable[[str, Tensor], None]  # (name, parameter), which it changes in place


@dataclass(frozen=True)
class LocalHooks:
    """What an algorithm and the client's memory change in a plain local training; by default nothing.

    correct: each gradient before clipping. after_step: each tensor after each step. trains: tensors for which it is
    false keep their value. wants_gradients: report the mean raw gradient. moments: Adam's state by its names (MOMENTS)
    and tensors, to go on from under train.optimizer-state = keep. opening: steps on the private tensors alone, before
    the task's own.
    """

    correct: Correct | None = None
    after_step: AfterStep | None = None
    trains: Callable[[str], bool] = everything
    wants_gradients: bool = False
    moments: Mapping[str, Tree] = field(default_factory=dict)
    private_steps: int = 0


PLAIN = LocalHooks()


def no_change(part: str) -> float:
    return 1.0


MOMENTS = {"adam.exp_avg": "exp_avg", "adam.exp_avg_sq": "exp_avg_sq", "adam.step": "step"}  # ours: torch's


class Stepper:
    """Correct, clip, step, correct again, on the tensors that train."""

    def __init__(
        self, flat: Flat, cfg: TrainConfig, hooks: LocalHooks, rate: Callable[[str], float] = no_change
    ) -> None:
        """rate: of a private part, in multiples of the learning rate."""
        self.flat, self.hooks, self.most = flat, hooks, cfg.max_grad_norm
        self.trained = {name: p for name, p in flat.parameters.items() if hooks.trains(name)}
        assert self.trained, "no tensor trains"
        self.keeps = cfg.optimizer_state == "keep"
        kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[cfg.optimizer]
        groups = [
            {"params": p, "lr": cfg.learning_rate * (rate(part) if part else 1.0)}
            for part, p in self._leaves()
        ]
        self.optimizer = kind(groups, lr=cfg.learning_rate, weight_decay=cfg.weight_decay, fused=True)
        if self.keeps:
            self._recall()
        self.steps = 0
        self.total = [torch.zeros_like(g) for g in flat.gradients] if hooks.wants_gradients else []

    def _leaves(self) -> list[tuple[str, list[Tensor]]]:
        """By part, what the optimiser moves: one kernel where every tensor is alike; a frozen one must not even
        decay, a kept state is by name."""
        blocks, out = self.flat.blocks, dict[str, list[Tensor]]()
        for block, weight in self.flat.weights.items():
            inside = [p for name, p in self.trained.items() if blocks[name] == block]
            alike = len(inside) == list(blocks.values()).count(block) and not self.keeps
            if inside:
                out.setdefault(block[0], []).extend([weight] if alike else inside)
        return list(out.items())

    @torch.no_grad()
    def step(self) -> float:
        """One step; the norm of the gradient, corrected and not yet clipped."""
        self.steps += 1
        for total, gradient in zip(self.total, self.flat.gradients, strict=False):  # no totals: not wanted
            total.add_(gradient)
        if self.hooks.correct:
            for name, parameter in self.trained.items():
                assert parameter.grad is not None, name
                parameter.grad.copy_(self.hooks.correct(name, parameter.detach(), parameter.grad))
        norm = self.flat.clip(self.most)
        self.optimizer.step()
        if self.hooks.after_step:
            for name, parameter in self.trained.items():
                self.hooks.after_step(name, parameter.detach())
        return norm

    def mean_gradient(self) -> Tree | None:
        """The mean over the steps of the raw gradient, of the tensors that train; None if it was not wanted."""
        if not self.hooks.wants_gradients:
            return None
        totals = self.flat.split(self.total)
        return {name: totals[name].cpu() / self.steps for name in self.trained}

    def moments(self) -> dict[str, Tree]:
        """Adam's state, if it is kept: of the tensors that trained as it is now, of the others as it was."""
        if not self.keeps:
            return {}
        states = {name: self.optimizer.state[p] for name, p in self.trained.items()}
        now = {o: {n: s[t].to("cpu", copy=True) for n, s in states.items()} for o, t in MOMENTS.items()}
        return {ours: {**self.hooks.moments.get(ours, {}), **tree} for ours, tree in now.items()}

    def _recall(self) -> None:
        for ours, torchs in MOMENTS.items():
            for name, value in self.hooks.moments.get(ours, {}).items():
                if name in self.trained:
                    p = self.trained[name]
                    self.optimizer.state[p][torchs] = value.to(p.device, copy=True)
