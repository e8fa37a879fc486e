"""Stepper: one optimiser step, from the gradients in the flat tensor to the next weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.local_steps import AfterStep, Correction
from core.sections import TrainConfig
from core.tree import Tree
from tasks.base import everything
from tasks.model.flat import Flat


@dataclass(frozen=True)
class LocalHooks:
    """Hooks and saved state that modify local training; the defaults change nothing.

    Attributes:
        correct: replaces each gradient, before clipping.
        after_step: modifies each trained tensor after each step.
        trains: whether the tensor of this name is trained; the others keep their values.
        wants_gradients: report the mean uncorrected gradient.
        moments: Adam's state to continue from, by its name (MOMENTS) and tensor, under train.optimizer-state = keep.
        private_steps: number of steps on the private tensors alone, before the task's steps.
    """

    correct: Correction | None = None
    after_step: AfterStep | None = None
    trains: Callable[[str], bool] = everything
    wants_gradients: bool = False
    moments: Mapping[str, Tree] = field(default_factory=dict)
    private_steps: int = 0


NO_HOOKS = LocalHooks()


def no_change(part: str) -> float:
    return 1.0


MOMENTS = {
    "adam.exp_avg": "exp_avg",
    "adam.exp_avg_sq": "exp_avg_sq",
    "adam.step": "step",
}  # name in the client's memory: name in torch


class Stepper:
    """Corrects and clips gradients, steps the optimiser and runs after_step, on the tensors that train."""

    def __init__(
        self, flat: Flat, cfg: TrainConfig, hooks: LocalHooks, rate: Callable[[str], float] = no_change
    ) -> None:
        """rate: the learning rate of a private part, as a multiple of cfg.learning_rate."""
        self.flat, self.hooks, self.max_norm = flat, hooks, cfg.max_grad_norm
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
            self._restore_moments()
        self.steps = 0
        self.total = [torch.zeros_like(g) for g in flat.gradients] if hooks.wants_gradients else []

    def _leaves(self) -> list[tuple[str, list[Tensor]]]:
        """The optimiser's tensors by part: one flat tensor if the whole part trains, else its trained tensors.

        A flat tensor needs one kernel. It is not used where some tensors are frozen, since weight decay would change
        them, nor under train.optimizer-state = keep, since the state is saved by tensor name.
        """
        blocks, out = self.flat.blocks, dict[str, list[Tensor]]()
        for block, weight in self.flat.weights.items():
            trained = [p for name, p in self.trained.items() if blocks[name] == block]
            is_whole = len(trained) == list(blocks.values()).count(block) and not self.keeps
            if trained:
                out.setdefault(block[0], []).extend([weight] if is_whole else trained)
        return list(out.items())

    @torch.no_grad()
    def step(self) -> float:
        """Take one step. Returns the norm of the corrected gradient before clipping."""
        self.steps += 1
        for total, gradient in zip(
            self.total, self.flat.gradients, strict=False
        ):  # no totals unless hooks.wants_gradients
            total.add_(gradient)
        if self.hooks.correct:
            for name, parameter in self.trained.items():
                assert parameter.grad is not None, name
                parameter.grad.copy_(self.hooks.correct(name, parameter.detach(), parameter.grad))
        norm = self.flat.clip(self.max_norm)
        self.optimizer.step()
        if self.hooks.after_step:
            for name, parameter in self.trained.items():
                self.hooks.after_step(name, parameter.detach())
        return norm

    def mean_gradient(self) -> Tree | None:
        """The mean over the steps of the uncorrected gradient of each trained tensor; None without wants_gradients."""
        if not self.hooks.wants_gradients:
            return None
        totals = self.flat.split(self.total)
        return {name: totals[name].cpu() / self.steps for name in self.trained}

    def moments(self) -> dict[str, Tree]:
        """Adam's state under optimizer-state = keep, else empty; a tensor that did not train keeps its earlier one."""
        if not self.keeps:
            return {}
        states = {name: self.optimizer.state[p] for name, p in self.trained.items()}
        trained = {
            moment: {name: state[torch_name].to("cpu", copy=True) for name, state in states.items()}
            for moment, torch_name in MOMENTS.items()
        }
        return {moment: {**self.hooks.moments.get(moment, {}), **tree} for moment, tree in trained.items()}

    def _restore_moments(self) -> None:
        for moment, torch_name in MOMENTS.items():
            for name, value in self.hooks.moments.get(moment, {}).items():
                if name in self.trained:
                    p = self.trained[name]
                    self.optimizer.state[p][torch_name] = value.to(p.device, copy=True)
