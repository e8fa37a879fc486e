"""The preference-conflict map: which clients' updates pull apart, in how many clusters, drawn as a matrix.

Clusters: Ward's linkage (Ward 1963) of the clients' updates as unit vectors, with squared distances 2 (1 - cosine).
Their number is where the tree has its largest step: k, if the merge of k clusters into k - 1 costs most in multiples of
what the merge into k did. One cluster, if no step is above 1.4: twelve updates that have nothing in common have such a
step in 3 of 100 draws from 15 dimensions and in 1 of 100 from 20; one population on the toy world leaves cosines as
wide as those from 20 to 30. (A silhouette compares with the nearest other cluster, and takes two opposite types and
one beside them for two.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core import store
from core.errors import DataError
from server_app.report.plots import BLUE, GRID, INK, MOST_NAMED, RED, SOFT, Plot, draw_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEP = 1.4  # of the cost of a merge, in multiples of the one before
MOST_CLUSTERS = 6
MOST_DRAWN = 100  # clients; above, a cell is below a pixel


@dataclass(frozen=True)
class Conflict:
    """Agreement of clients' summed updates, each matrix (C, C) in the order of `clients`."""

    clients: tuple[int, ...]
    cosine: np.ndarray
    signs: np.ndarray  # share of the entries in which both move and move the same way
    apart: np.ndarray  # cosine of what is left without the mean of the round


def read_conflict(run: Path) -> Conflict:
    """What strategy `probe` has measured up to the last checkpoint of a run; DataError if it has not."""
    saved = store.rounds(run / "checkpoints")
    found = store.load(store.round_folder(run / "checkpoints", saved[-1]))[1] if saved else {}
    known = found.get("facts", {}).get("conflict")
    if not known:
        raise DataError(f"{run} holds no conflict map: expected a run with strategy.name = 'probe'")
    cosine, signs, apart = (np.array(known[name]) for name in ("cosine", "signs", "apart"))
    return Conflict(tuple(known["clients"]), cosine, signs, apart)


def clustered(apart: np.ndarray) -> list[int]:
    """The cluster of each client from 0, by size and then by first client. apart: (C, C) cosines."""
    most = min(MOST_CLUSTERS, len(apart) // 2)
    if most < 2:
        return [0] * len(apart)
    costs = np.maximum(_tree(apart)[::-1, 2], 1e-9)  # of the merges into 1, 2, ... clusters
    steps = costs[: most - 1] / costs[1:most]
    best = int(np.argmax(steps))
    return split(apart, best + 2) if steps[best] > STEP else [0] * len(apart)


def split(apart: np.ndarray, count: int) -> list[int]:
    """The cluster of each client when there are `count`, numbered as in `clustered`."""
    from scipy.cluster.hierarchy import cut_tree  # slow to import

    labels = cut_tree(_tree(apart), count)[
        :, 0
    ].tolist()  # fcluster gives fewer where merges are equally high
    by_size = sorted(set(labels), key=lambda label: (-labels.count(label), labels.index(label)))
    return [by_size.index(label) for label in labels]


def _tree(apart: np.ndarray) -> np.ndarray:
    """Ward's merges, as scipy has them: (C - 1, 4), from the cheapest to the last one."""
    from scipy.cluster.hierarchy import linkage  # slow to import
    from scipy.spatial.distance import squareform

    distances = np.sqrt(np.clip(1 - (apart + apart.T) / 2, 0, 2) * 2)
    np.fill_diagonal(distances, 0)
    return linkage(squareform(distances, checks=False), "ward")


def draw_conflict(found: Conflict, groups: Sequence[int], truth: Mapping[int, int]) -> Plot | None:
    """The matrix in the order of the clusters: `apart` below the diagonal, `signs` above. None for too many clients."""
    count = len(found.clients)
    if not 1 < count <= MOST_DRAWN:
        return None
    order = sorted(range(count), key=lambda i: (groups[i], truth.get(found.clients[i], 0), i))
    below, above = found.apart[np.ix_(order, order)], 2 * found.signs[np.ix_(order, order)] - 1
    off = ~np.eye(count, dtype=bool)
    most = [max(float(np.abs(m[off]).max()), 1e-9) for m in (below, above)]  # full colour
    shown = np.tril(below, -1) / most[0] + np.triu(above, 1) / most[1]
    sizes = [len(list(same)) for _, same in groupby(groups[i] for i in order)]
    starts = np.cumsum([0, *sizes])

    def draw(ax: "Axes") -> None:
        from matplotlib.patches import Rectangle

        for y in range(count):
            for x in range(count):
                strength = abs(shown[y, x])
                colour = BLUE if shown[y, x] > 0 else RED
                if x == y:
                    colour, strength = GRID, 1.0
                cell = Rectangle(
                    (x - 0.46, y - 0.46), 0.92, 0.92, facecolor=colour, alpha=strength, linewidth=0
                )
                ax.add_patch(cell)
        for start, end in pairwise(starts):
            frame = (start - 0.5, start - 0.5), end - start, end - start
            ax.add_patch(Rectangle(*frame, fill=False, edgecolor=INK, linewidth=1.6))
        names = [_name(found.clients[i], truth) for i in order] if count <= MOST_NAMED else [""] * count
        ax.set_xticks(range(count), [name.split(" ")[0] for name in names], fontsize=8)
        ax.set_yticks(range(count), names, fontsize=8)
        ax.set_xlim(-0.6, count - 0.4)
        ax.set_ylim(count - 0.4, -0.6)
        ax.set_aspect("equal")
        ax.set_ylabel("client" + (" (planted type)" if truth else ""), color=SOFT)
        ax.grid(False)
        ax.spines[:].set_visible(False)
        for colour, label in ((BLUE, "agree"), (RED, "conflict")):
            ax.add_patch(Rectangle((0, 0), 0, 0, color=colour, label=label))

    clusters = f"{len(sizes)} clusters, framed" if len(sizes) > 1 else "One cluster"
    caption = (
        "How far the clients' updates agree over the whole run of FedAvg. Below the diagonal: the cosine of what is "
        f"left of two updates without the mean update, full colour at {most[0]:.2f}. Above: the share of entries that "
        f"move the same way, white at one half, full colour {most[1] / 2:.2f} away from it. {clusters}."
    )
    return draw_plot("conflict", "Preference-conflict map", caption, draw, x="client", height=5.0)


def _name(client: int, truth: Mapping[int, int]) -> str:
    return f"{client} ({truth[client]})" if client in truth else str(client)
