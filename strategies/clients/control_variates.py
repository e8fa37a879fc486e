"""SCAFFOLD on the client: a control variate c_k, the client's mean gradient, and steps corrected by c - c_k.

Karimireddy et al. 2020, Algorithm 1 (arXiv:1910.06378), in two variants.

"paper": the correction is in the gradient, g - c_k + c. The new control is the paper's option II,
c_k - c + (x - y_k)/(K eta) (control = "steps"), which equals the client's mean gradient if a step is eta times the
gradient, as in plain SGD without clipping. Adam's step is rather eta times a sign; use the mean gradient itself there
(control = "gradients"). Deviation: clipping and Adam's moments see the corrected gradient.

"openfedllm" (github.com/rui-ye/OpenFedLLM): w -= eta (c - c_k) after each optimiser step, so neither clipping
nor moments see it, and option II with every optimiser.

c is the order's tree "control"; c_k is the tree "control" of the client's private memory, zero before its first round.
The change of c_k is sent. A tensor that is not both trained and shared in a round keeps its control.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from core.errors import ConfigError
from core.local_steps import AfterStep, Correction
from core.tree import Tree, sub
from core.types import Order
from strategies.clients.rule import DEFAULT_RULE, ClientRule, Memory, Outcome, Trees, placed_like

CONTROL = "control"
Variant = Literal["paper", "openfedllm"]
Control = Literal["steps", "gradients"]


def option_two(x: Tensor, y: Tensor, drift: Tensor, span: float) -> Tensor:
    """Return a tensor's new control, (x - y)/span - drift, with drift = c - c_k and span = K eta."""
    return (x - y) / span - drift


def scaffold_rule(variant: Variant, control: Control, rule: ClientRule = DEFAULT_RULE) -> ClientRule:
    """Return `rule` with SCAFFOLD's corrected steps and control.

    Raises ConfigError for variant "openfedllm" with another control than "steps".
    """
    if variant == "openfedllm" and control != "steps":
        raise ConfigError(
            f"scaffold's variant 'openfedllm' computes its control from the steps, got control {control!r}; "
            "choose control 'steps' or variant 'paper'"
        )

    def extra_trees(order: Order, memory: Memory, outcome: Outcome) -> tuple[Trees, Trees]:
        names, old = list(outcome.after), _control(order, memory)
        if control == "gradients":
            assert outcome.gradients is not None, "the rule has wants_gradients"
            new = outcome.gradients
        else:
            drift, span = sub(order.trees[CONTROL], old), outcome.steps * outcome.learning_rate
            new = {n: option_two(outcome.before[n], outcome.after[n], drift[n], span) for n in names}
        control_tree = {**memory.get(CONTROL, {}), **new}
        return {CONTROL: sub(new, {n: old[n] for n in names})}, {CONTROL: control_tree}

    rule = replace(
        rule, extra_trees=extra_trees, wants_gradients=control == "gradients", sends=(*rule.sends, CONTROL)
    )
    return replace(rule, correct=_in_gradient) if variant == "paper" else replace(rule, after_step=_past_step)


def _control(order: Order, memory: Memory) -> Tree:
    """Return c_k of every tensor that the server has a control for, zero where the client has none yet."""
    stored = memory.get(CONTROL, {})
    return {n: stored[n] if n in stored else torch.zeros_like(c) for n, c in order.trees[CONTROL].items()}


def _in_gradient(order: Order, memory: Memory) -> Correction:
    drift = sub(order.trees[CONTROL], _control(order, memory))
    placed = placed_like(drift)
    return lambda name, w, gradient: gradient + placed(name, w) if name in drift else gradient


def _past_step(order: Order, memory: Memory, learning_rate: float) -> AfterStep:
    drift = sub(order.trees[CONTROL], _control(order, memory))
    placed = placed_like(drift)

    def shift(name: str, w: Tensor) -> None:
        if name in drift:
            w.sub_(placed(name, w), alpha=learning_rate)

    return shift
