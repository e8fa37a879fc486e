"""A client's comparison of several adapters: their losses on its comparison rows, their vote on held-out pairs."""

from collections.abc import Mapping, Sequence

import torch

from core.sections import Config
from core.seeds import rng_for
from core.tree import Tree
from core.types import Metrics, Order
from tasks.base import Row, Task
from tasks.forward.reference import reference_logps
from tasks.model.adapter import set_adapter
from tasks.model.base import Base
from tasks.scoring.evaluate import choice_batch
from tasks.scoring.race import race
from tasks.tokens.cache import Cache
from tasks.tokens.choice import log_odds, margins, share_right
from tasks.training import engine
from tasks.training.loop import row_losses, weight


def losses(
    base: Base,
    task: Task,
    comparison_rows: Sequence[Row],
    trees: Mapping[str, Tree],
    order: Order,
    config: Config,
    cache: Cache,
    *,
    seed: int,
) -> Metrics:
    """Return `loss/<name>`, the task's loss under each adapter; empty if the client has no usable comparison rows.

    With the order's option "race" above 0 an adapter that is clearly behind is dropped early, and `race/scored` is the
    share of the (adapter, row) pairs that were scored.
    """
    usable_rows = engine.encode_rows(base, task, comparison_rows, config, cache).usable
    if not usable_rows:
        return {}
    rows = task.prepare(usable_rows, seed=seed, max_length=config.train.max_length)
    rng_for(seed, "race").shuffle(rows)
    refs = reference_logps(base, rows, cache) if task.needs_reference else {}
    z = float(order.options.get("race", 0.0))

    def score(name: str, start: int, stop: int) -> list[float]:
        set_adapter(base, trees[name])
        return row_losses(base, task, rows[start:stop], refs=refs, options=order.options)

    result = race(list(trees), [weight(task, [row]) for row in rows], score, z=z)
    metrics = {f"loss/{name}": loss for name, loss in result.losses.items()}
    return {**metrics, "race/scored": result.scored} if z else metrics


def ballots(text: str) -> dict[str, float]:
    """Parse the weights of adapters in a vote, such as "c0:5,c1:7"."""
    return {name: float(weight) for name, weight in (ballot.split(":") for ballot in text.split(","))}


def vote(
    base: Base,
    task: Task,
    heldout: Sequence[Row],
    trees: Mapping[str, Tree],
    weights: Mapping[str, float],
    config: Config,
    cache: Cache,
) -> Metrics:
    """Return `vote/accuracy`, how often the weighted soft vote picks the chosen answer; empty without pairs."""
    examples = engine.heldout_of(base, task, heldout, config, cache)
    if not examples:
        return {}
    total = torch.zeros(len(examples), dtype=torch.float64)
    for name, tree in trees.items():
        set_adapter(base, tree)
        z = margins(choice_batch(base, examples)).double().cpu()
        total += weights[name] * log_odds(z, task.reward_scale)
    return {"vote/accuracy": share_right(total)}
