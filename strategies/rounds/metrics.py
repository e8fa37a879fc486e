"""Means and sums of client metrics over the federation."""

from collections.abc import Mapping, Sequence

from core.types import Json, Metrics, Update

LARGEST = 1e30
SUM = "sum/"  # prefix of additive quantities: the server sums them and the task computes its settings from the sums


def is_number(value: object) -> bool:
    """Whether a value from a client is a finite number of a size that sums over clients keep finite."""
    return type(value) in (int, float) and abs(value) < LARGEST  # type: ignore[operator]  # a number by its type


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


def by_client(updates: Sequence[Update]) -> Json:
    """Return the metrics of each client, with its rows as "examples", for a round's record."""
    return {
        str(u.client): {n: v for n, v in u.metrics.items() if not n.startswith(SUM)}
        | {"examples": u.examples}
        for u in updates
    }


def base_loads(updates: Sequence[Update], before: Mapping[str, int]) -> dict[str, int]:
    """Return how often each client loaded its base model, added to `before`; clients that loaded none are absent."""
    new = {str(u.client): u.loads for u in updates if type(u.loads) is int and u.loads > 0}
    return {client: before.get(client, 0) + new.get(client, 0) for client in sorted({*before, *new})}


def split_seconds(updates: Sequence[Update], seconds: float) -> dict[str, float]:
    """Split an exchange's wall time along its slowest client; 'wire' is what this client does not account for."""
    times = [(u.metrics.get("seconds/load", 0.0), u.metrics.get("seconds/train", 0.0)) for u in updates]
    load, train = max(times, key=sum, default=(0.0, 0.0))
    return {"load": load, "train": train, "wire": max(0.0, seconds - load - train)}
