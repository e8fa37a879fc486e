"""The federation's mean of what its clients measured."""

from collections.abc import Sequence

from core.types import Metrics, Update

SUM = "sum/"  # prefix of additive quantities: the server adds them, the task's brief reads them


def weighted_mean(updates: Sequence[Update]) -> Metrics:
    """Each metric's mean over the clients that have it, weighted by their examples; "examples" is the sum.

    A metric that no client has is absent.
    """
    out: Metrics = {}
    for name in sorted({n for u in updates for n in u.metrics if not n.startswith(SUM)}):
        having = [(u.metrics[name], u.examples) for u in updates if name in u.metrics and u.examples > 0]
        if having:
            out[name] = sum(value * weight for value, weight in having) / sum(weight for _, weight in having)
    if updates:
        out["examples"] = float(sum(u.examples for u in updates))
    return out


def pooled_sums(updates: Sequence[Update]) -> Metrics:
    """The additive quantities of all clients, added in the order given."""
    out: Metrics = {}
    for update in updates:
        for name, value in update.metrics.items():
            if name.startswith(SUM):
                short = name.removeprefix(SUM)
                out[short] = out.get(short, 0.0) + value
    return out
