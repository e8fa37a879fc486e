"""Check what clients send before it is used; no client is trusted."""

import math
from dataclasses import replace

from core.errors import TreeMismatch
from core.factors import is_private
from core.sections import FaultConfig
from core.tree import norm, same_layout
from core.types import Metrics, Order, Update
from strategies.clients.rule import ClientRule
from strategies.rounds.metrics import is_number


def checked_update(
    order: Order, update: Update, rule: ClientRule, fault: FaultConfig, rows: int
) -> Update | str:
    """Return the update with the norms of its trees as metrics, or why it cannot be aggregated.

    rows: the number of training rows that the client's hello reported.
    """
    if not 0 < update.examples <= fault.max_examples:
        return f"it reports {update.examples} examples; fault.max-examples = {fault.max_examples}"
    if "rows" not in order.options and update.examples != rows:
        return f"it reports {update.examples} examples, but its hello reported {rows}"
    if not 0 <= update.tokens <= fault.max_examples * 1000:
        return f"it reports {update.tokens} tokens in {update.examples} examples"
    if set(update.trees) != set(rule.sends):
        return f"it sent trees {sorted(update.trees)}, expected {sorted(rule.sends)}"
    expected = {n: t for n, t in order.trees[order.adapter].items() if rule.leaves(n, order.round)}
    norms: Metrics = {}
    for name, tree in update.trees.items():
        if private := [n for n in tree if is_private(n)]:
            return f"it sent the private tensor {private[0]!r} in {name}"
        try:
            same_layout(expected, tree, where=name)
        except TreeMismatch as error:
            return str(error)
        size = norm(tree)
        if not math.isfinite(size):
            return f"{name} holds NaN or Inf, or is too large for float32"
        if name == "delta" and size > fault.max_delta_norm:
            return f"the norm of its delta is {size:.3g}, fault.max-delta-norm = {fault.max_delta_norm:g}"
        norms[f"norm/{name}"] = size
    return _metric_problem(update) or replace(update, metrics={**update.metrics, **norms})


def checked_scores(update: Update, fault: FaultConfig) -> Update | str:
    """Return the update of an evaluation, or why its scores cannot be used."""
    if not 0 <= update.examples <= fault.max_examples:
        return f"it reports {update.examples} examples; fault.max-examples = {fault.max_examples}"
    if update.trees:
        return f"it sent trees {sorted(update.trees)} with its scores"
    return _metric_problem(update) or update


def _metric_problem(update: Update) -> str | None:
    for name, value in update.metrics.items():
        if not is_number(value):
            # a text is not repeated: it may be private
            description = f"{value:g}" if isinstance(value, float) else f"a {type(value).__name__}"
            return f"metric {name!r} is {description}, expected a finite number"
    return None
