"""Assign clients to selectors by each selector's loss on the client's comparison rows.

`exact` minimises the summed losses under balanced group sizes; `greedy` is FedBiscuit's procedure (arXiv:2407.03038,
constraint (7)), which depends on the order of the clients and can end far above the minimum.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

WORST = 1e6  # replaces a loss that is not finite
Groups = list[int]  # selector of each client


def exact(
    losses: np.ndarray,
    *,
    current: Sequence[int | None] = (),
    fixed: Sequence[bool] = (),
    hysteresis: float = 0.0,
    softness: float = 0.0,
) -> Groups:
    """Return the assignment with the least total loss whose group sizes differ by at most 1.

    losses: (clients, selectors).
    current: the group of each client now, None if it has none.
    fixed: whether a client stays in its current group. It counts in the group's size; a group with too many fixed
        clients gets no others.
    hysteresis: a client leaves its current group only for a gain above hysteresis times the standard deviation of the
        centred losses.
    softness: if above 0, sizes are free, and cost softness times that standard deviation times
        sum_u size_u^2 / (2 clients / selectors).
    """
    cost = centred(losses)
    clients, selectors = cost.shape
    complete = np.isfinite(losses).all(axis=1)
    spread = float(cost[complete].std()) if complete.any() else 0.0
    groups = [-1 if u is None else u for u in current] or [-1] * clients
    for client, selector in enumerate(groups):
        if selector >= 0:
            cost[client, selector] -= hysteresis * spread
    free = [m for m in range(clients) if not (fixed and fixed[m])]
    fixed_sizes = Counter(groups[m] for m in range(clients) if m not in set(free))
    price = softness * spread * selectors / clients
    least = clients // selectors
    places = [  # (selector, how many clients the group has before this one)
        (u, k)
        for u in range(selectors)
        for k in range(fixed_sizes[u], clients if softness > 0 else max(fixed_sizes[u], least + 1))
    ]
    table = cost[free][:, [u for u, _ in places]]
    if softness > 0:
        table = table + price * np.array([k + 0.5 for _, k in places])
    else:
        # dummy rows fill the places that stay free: a group's last place at no cost, others at a prohibitive cost, so
        # that every group reaches `least`
        dummy = [4 * WORST * clients * (least - k) for _, k in places]
        table = np.vstack([table, np.tile(dummy, (len(places) - len(free), 1))])
    chosen = linear_sum_assignment(table)[1]
    for client, place in zip(free, chosen, strict=False):  # the dummy rows come last
        groups[client] = places[place][0]
    return groups


def centred(losses: np.ndarray) -> np.ndarray:
    """Subtract each client's mean loss: how difficult its rows are does not matter for its group."""
    finite = np.where(np.isfinite(losses), losses, WORST).astype(np.float64)
    return finite - finite.mean(axis=1, keepdims=True)


@dataclass(frozen=True)
class Step:
    """One step of `greedy`: a selector closes its group."""

    cap: int
    candidates: dict[int, list[int]]
    picked: int
    accepted: list[int]
    evicted: list[int]


@dataclass
class Trace:
    """The steps of `greedy`, for tests."""

    steps: list[Step] = field(default_factory=list)


def greedy(losses: np.ndarray, order: Sequence[int], trace: Trace | None = None) -> Groups:
    """Return FedBiscuit's grouping for clients that arrive in `order`.

    Every client applies to the best selector that is still open. The selector with most candidates accepts the first
    ceil(remaining clients / open selectors) and closes; the other candidates apply again.
    """
    finite = np.where(np.isfinite(losses), losses, WORST)
    wishes = {m: list(np.argsort(finite[m], kind="stable")) for m in order}
    candidates: dict[int, list[int]] = {u: [] for u in range(losses.shape[1])}
    waiting, rest, groups = list(order), len(order), [0] * len(order)
    while rest:
        cap = -(-rest // len(candidates))
        for m in waiting:
            while wishes[m][0] not in candidates:
                wishes[m].pop(0)
            candidates[int(wishes[m].pop(0))].append(m)
        picked = max(candidates, key=lambda u: (len(candidates[u]), -u))
        accepted, waiting = candidates[picked][:cap], candidates[picked][cap:]
        if trace is not None:
            snapshot = {u: list(c) for u, c in candidates.items()}
            trace.steps.append(Step(cap, snapshot, picked, accepted, list(waiting)))
        del candidates[picked]
        rest -= len(accepted)
        for m in accepted:
            groups[m] = picked
    return groups


def join(groups: Mapping[int, int], newcomers: Sequence[int], selectors: int) -> dict[int, int]:
    """Return the groups with each newcomer, in turn, added to the smallest group; the first of these on a tie."""
    out, sizes = dict(groups), Counter(groups.values())
    for client in newcomers:
        out[client] = min(range(selectors), key=lambda u: (sizes[u], u))
        sizes[out[client]] += 1
    return out
