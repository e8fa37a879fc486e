"""The preference-conflict map: how far clients' updates disagree, and their clusters, drawn as a matrix.

Clusters: Ward's linkage (Ward 1963) of the clients' updates as unit vectors, with squared distances 2 (1 - cosine).
Their number k is at the largest step of the tree, i.e. where the ratio of the cost of merging k clusters into k - 1 to
the cost of the merge into k is largest. There is one cluster if no ratio is above 1.4: twelve unrelated updates exceed
it in 3 of 100 draws from 15 dimensions and in 1 of 100 from 20, and one population in the toy world has cosines spread
as in 20 to 30 dimensions. (A silhouette is not used: it compares with the nearest other cluster, so that it counts two
opposite types and a third between them as two clusters.)
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

MIN_STEP = 1.4  # ratio of the costs of two successive merges above which clusters are separate
MOST_CLUSTERS = 6
MOST_DRAWN = 100  # clients; beyond this a cell is smaller than a pixel


@dataclass(frozen=True)
class Conflict:
    """Agreement of the clients' summed updates; each matrix is (C, C) in the order of `clients`."""

    clients: tuple[int, ...]
    cosine: np.ndarray
    signs: np.ndarray  # share of equal signs among the entries that both clients changed
    apart: np.ndarray  # cosine of the updates minus the mean update of the round


def read_conflict(run: Path) -> Conflict:
    """The conflict map that strategy `probe` measured, from the last checkpoint. Raises DataError if there is none."""
    saved = store.rounds(run / "checkpoints")
    facts = store.load(store.round_folder(run / "checkpoints", saved[-1]))[1] if saved else {}
    measured = facts.get("facts", {}).get("conflict")
    if not measured:
        raise DataError(f"{run} has no conflict map: expected a run with strategy.name = 'probe'")
    cosine, signs, apart = (np.array(measured[name]) for name in ("cosine", "signs", "apart"))
    return Conflict(tuple(measured["clients"]), cosine, signs, apart)


def find_clusters(apart: np.ndarray) -> list[int]:
    """The cluster of each client, numbered from 0 by size, then by first client. apart: (C, C) cosines."""
    max_clusters = min(MOST_CLUSTERS, len(apart) // 2)
    if max_clusters < 2:
        return [0] * len(apart)
    # costs of the merges into 1, 2, ... clusters; the floor avoids a division by 0 where updates are equal
    costs = np.maximum(_merges(apart)[::-1, 2], 1e-9)
    steps = costs[: max_clusters - 1] / costs[1:max_clusters]
    best = int(np.argmax(steps))
    return split(apart, best + 2) if steps[best] > MIN_STEP else [0] * len(apart)


def split(apart: np.ndarray, count: int) -> list[int]:
    """The cluster of each client for `count` clusters, numbered as in `find_clusters`."""
    from scipy.cluster.hierarchy import cut_tree  # slow to import

    # cut_tree, because fcluster gives fewer clusters where merges have equal costs
    labels = cut_tree(_merges(apart), count)[:, 0].tolist()
    by_size = sorted(set(labels), key=lambda label: (-labels.count(label), labels.index(label)))
    return [by_size.index(label) for label in labels]


def _merges(apart: np.ndarray) -> np.ndarray:
    """Ward's merges as scipy's linkage matrix: (C - 1, 4), by increasing cost."""
    from scipy.cluster.hierarchy import linkage  # slow to import
    from scipy.spatial.distance import squareform

    # averaging with the transpose and clipping remove rounding errors of the cosines
    distances = np.sqrt(np.clip(1 - (apart + apart.T) / 2, 0, 2) * 2)
    np.fill_diagonal(distances, 0)
    return linkage(squareform(distances, checks=False), "ward")


def draw_conflict(conflict: Conflict, groups: Sequence[int], truth: Mapping[int, int]) -> Plot | None:
    """Draw the matrix in the order of the clusters: `apart` below the diagonal, `signs` above it.

    None for one client or for more than MOST_DRAWN.
    """
    count = len(conflict.clients)
    if not 1 < count <= MOST_DRAWN:
        return None
    order = sorted(range(count), key=lambda i: (groups[i], truth.get(conflict.clients[i], 0), i))
    below, above = conflict.apart[np.ix_(order, order)], 2 * conflict.signs[np.ix_(order, order)] - 1
    off_diagonal = ~np.eye(count, dtype=bool)
    # values that are drawn in full colour
    extremes = [max(float(np.abs(m[off_diagonal]).max()), 1e-9) for m in (below, above)]
    shades = np.tril(below, -1) / extremes[0] + np.triu(above, 1) / extremes[1]
    sizes = [len(list(members)) for _, members in groupby(groups[i] for i in order)]
    starts = np.cumsum([0, *sizes])

    def draw(ax: "Axes") -> None:
        from matplotlib.patches import Rectangle

        for y in range(count):
            for x in range(count):
                strength = abs(shades[y, x])
                colour = BLUE if shades[y, x] > 0 else RED
                if x == y:
                    colour, strength = GRID, 1.0
                cell = Rectangle(
                    (x - 0.46, y - 0.46), 0.92, 0.92, facecolor=colour, alpha=strength, linewidth=0
                )
                ax.add_patch(cell)
        for start, end in pairwise(starts):
            frame = (start - 0.5, start - 0.5), end - start, end - start
            ax.add_patch(Rectangle(*frame, fill=False, edgecolor=INK, linewidth=1.6))
        names = [_label(conflict.clients[i], truth) for i in order] if count <= MOST_NAMED else [""] * count
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
        "Agreement of the clients' updates over the whole run of FedAvg. Below the diagonal: the cosine of two updates "
        f"minus the mean update, full colour at {extremes[0]:.2f}. Above: the share of entries with equal signs, "
        f"white at one half, full colour {extremes[1] / 2:.2f} away from it. {clusters}."
    )
    return draw_plot("conflict", "Preference-conflict map", caption, draw, x="client", height=5.0)


def _label(client: int, truth: Mapping[int, int]) -> str:
    return f"{client} ({truth[client]})" if client in truth else str(client)
