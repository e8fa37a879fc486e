"""Which client belongs to which selector, from what each selector's loss is on the client's validation rows.

`exact` is the balanced minimum of the summed losses; `greedy` is FedBiscuit's own procedure (arXiv:2407.03038,
constraint (7)), which depends on the order of the clients and can end far above the minimum.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

WORST = 1e6  # stands for a loss that is not finite
Groups = list[int]  # selector of each client


def exact(
    losses: np.ndarray,
    *,
    now: Sequence[int | None] = (),
    fixed: Sequence[bool] = (),
    hysteresis: float = 0.0,
    softness: float = 0.0,
) -> Groups:
    """The assignment of least total loss whose group sizes differ by at most 1; losses is (clients, selectors).

    fixed: these clients stay in their group of `now`, and count in its size; with too many of them in one group no
    other client joins it. hysteresis: a client leaves its group of `now` only for a gain above hysteresis times the
    standard deviation of the centred losses. softness: above 0, sizes are free and cost softness times that standard
    deviation times sum_u size_u^2 / (2 clients / selectors) instead.
    """
    cost = centred(losses)
    clients, selectors = cost.shape
    whole = np.isfinite(losses).all(axis=1)
    spread = float(cost[whole].std()) if whole.any() else 0.0
    groups = [-1 if u is None else u for u in now] or [-1] * clients
    for client, selector in enumerate(groups):
        if selector >= 0:
            cost[client, selector] -= hysteresis * spread
    free = [m for m in range(clients) if not (fixed and fixed[m])]
    taken = Counter(groups[m] for m in range(clients) if m not in set(free))
    price = softness * spread * selectors / clients
    least = clients // selectors
    places = [  # (selector, how many are in the group before)
        (u, k)
        for u in range(selectors)
        for k in range(taken[u], clients if softness > 0 else max(taken[u], least + 1))
    ]
    table = cost[free][:, [u for u, _ in places]]
    if softness > 0:
        table = table + price * np.array([k + 0.5 for _, k in places])
    else:  # rows of nobody fill the places that stay free: a group's last one at no cost, others at a forbidding one
        nobody = [4 * WORST * clients * (least - k) for _, k in places]
        table = np.vstack([table, np.tile(nobody, (len(places) - len(free), 1))])
    chosen = linear_sum_assignment(table)[1]
    for client, place in zip(free, chosen, strict=False):  # nobody comes last
        groups[client] = places[place][0]
    return groups


def centred(losses: np.ndarray) -> np.ndarray:
    """Each client's losses without their mean: how difficult its rows are says nothing about where it belongs."""
    known = np.where(np.isfinite(losses), losses, WORST).astype(np.float64)
    return known - known.mean(axis=1, keepdims=True)


@dataclass(frozen=True)
class Step:
    """One selector closed by `greedy`."""

    cap: int
    candidates: dict[int, list[int]]
    picked: int
    kept: list[int]
    evicted: list[int]


@dataclass
class Trace:
    steps: list[Step] = field(default_factory=list)


def greedy(losses: np.ndarray, order: Sequence[int], trace: Trace | None = None) -> Groups:
    """FedBiscuit's grouping, the clients arriving in `order`: every client asks for the best selector still open,
    the most wanted selector keeps its first ceil(rest / open), the others ask again."""
    known = np.where(np.isfinite(losses), losses, WORST)
    wishes = {m: list(np.argsort(known[m], kind="stable")) for m in order}
    candidates: dict[int, list[int]] = {u: [] for u in range(losses.shape[1])}
    waiting, rest, groups = list(order), len(order), [0] * len(order)
    while rest:
        cap = -(-rest // len(candidates))
        for m in waiting:
            while wishes[m][0] not in candidates:
                wishes[m].pop(0)
            candidates[int(wishes[m].pop(0))].append(m)
        picked = max(candidates, key=lambda u: (len(candidates[u]), -u))
        kept, waiting = candidates[picked][:cap], candidates[picked][cap:]
        if trace is not None:
            shown = {u: list(c) for u, c in candidates.items()}
            trace.steps.append(Step(cap, shown, picked, kept, list(waiting)))
        del candidates[picked]
        rest -= len(kept)
        for m in kept:
            groups[m] = picked
    return groups


def join(groups: Mapping[int, int], newcomers: Sequence[int], selectors: int) -> dict[int, int]:
    """The groups with each newcomer, in the order given, in the smallest; the first of those on a tie."""
    out, sizes = dict(groups), Counter(groups.values())
    for client in newcomers:
        out[client] = min(range(selectors), key=lambda u: (sizes[u], u))
        sizes[out[client]] += 1
    return out
