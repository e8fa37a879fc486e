"""Means and sums of client metrics over the federation."""

from collections.abc import Sequence

from core.types import Metrics, Update

SUM = "sum/"  # prefix of additive quantities: the server sums them and the task computes its settings from the sums


def weighted_mean(updates: Sequence[Update]) -> Metrics:
    """Return each metric's mean over the clients that have it, weighted by examples; "examples" is their sum.

    A metric that no client has is absent.
    """
    out: Metrics = {}
    for name in sorted({n for u in updates for n in u.metrics if not n.startswith(SUM)}):
        measured = [(u.metrics[name], u.examples) for u in updates if name in u.metrics and u.examples > 0]
        if measured:
            out[name] = sum(value * weight for value, weight in measured) / sum(
                weight for _, weight in measured
            )
    if updates:
        out["examples"] = float(sum(u.examples for u in updates))
    return out


def pooled_sums(updates: Sequence[Update]) -> Metrics:
    """Return the sums over clients of the additive quantities, added in the order of `updates`."""
    out: Metrics = {}
    for update in updates:
        for name, value in update.metrics.items():
            if name.startswith(SUM):
                short = name.removeprefix(SUM)
                out[short] = out.get(short, 0.0) + value
    return out
