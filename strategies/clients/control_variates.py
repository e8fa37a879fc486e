"""SCAFFOLD's client: a control c_k, the client's mean gradient, and steps corrected by c - c_k.

Karimireddy et al. 2020, Algorithm 1 (arXiv:1910.06378), in two variants.

"paper": the correction is in the gradient, g - c_k + c. The new control is the paper's option II,
c_k - c + (x - y_k)/(K eta) (control = "steps"), which is the client's mean gradient where a step is eta times the
gradient: plain SGD without clipping. Adam's step is eta times something like a sign; there, take the mean gradient
itself (control = "gradients"). Deviation: clipping and Adam's moments see the corrected gradient.

"openfedllm" (github.com/rui-ye/OpenFedLLM): w -= eta (c - c_k) after each optimiser step, past clipping and
moments, and option II whatever the optimiser.

c comes as the order's tree "control"; c_k is the client's private memory "control", zero before its first round. The
change of c_k travels. A tensor that does not train and travel in a round keeps its control.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from core.errors import ConfigError
from core.tree import Tree, sub
from core.types import Order
from strategies.clients.rule import PLAIN, AfterStep, ClientRule, Correct, Memory, Outcome, Trees, beside

CONTROL = "control"
Variant = Literal["paper", "openfedllm"]
Control = Literal["steps", "gradients"]


def option_two(x: Tensor, y: Tensor, drift: Tensor, span: float) -> Tensor:
    """(x - y)/span - drift, a tensor's new control; drift = c - c_k, span = K eta."""
    return (x - y) / span - drift


def scaffold_rule(variant: Variant, control: Control, rule: ClientRule = PLAIN) -> ClientRule:
    """`rule` with SCAFFOLD's steps and control. Raises ConfigError where variant and control do not fit."""
    if variant == "openfedllm" and control != "steps":
        raise ConfigError(
            f"scaffold's variant 'openfedllm' makes its control from the steps, got control {control!r}; "
            "choose control 'steps' or variant 'paper'"
        )

    def adds(order: Order, memory: Memory, outcome: Outcome) -> tuple[Trees, Trees]:
        names, old = list(outcome.after), _control(order, memory)
        if control == "gradients":
            assert outcome.gradients is not None, "the rule wants gradients"
            new = outcome.gradients
        else:
            drift, span = sub(order.trees[CONTROL], old), outcome.steps * outcome.learning_rate
            new = {n: option_two(outcome.before[n], outcome.after[n], drift[n], span) for n in names}
        kept = {**memory.get(CONTROL, {}), **new}
        return {CONTROL: sub(new, {n: old[n] for n in names})}, {CONTROL: kept}

    rule = replace(rule, adds=adds, wants_gradients=control == "gradients", sends=(*rule.sends, CONTROL))
    return replace(rule, correct=_in_gradient) if variant == "paper" else replace(rule, after_step=_past_step)


def _control(order: Order, memory: Memory) -> Tree:
    """c_k of every tensor that the server has a control for."""
    own = memory.get(CONTROL, {})
    return {n: own[n] if n in own else torch.zeros_like(c) for n, c in order.trees[CONTROL].items()}


def _in_gradient(order: Order, memory: Memory) -> Correct:
    drift = sub(order.trees[CONTROL], _control(order, memory))
    placed = beside(drift)
    return lambda name, w, gradient: gradient + placed(name, w) if name in drift else gradient


def _past_step(order: Order, memory: Memory, learning_rate: float) -> AfterStep:
    drift = sub(order.trees[CONTROL], _control(order, memory))
    placed = beside(drift)

    def shift(name: str, w: Tensor) -> None:
        if name in drift:
            w.sub_(placed(name, w), alpha=learning_rate)

    return shift
