"""Plots of a report as SVG text: accuracy, loss, groups, bytes and time by round; omitted without data."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from core.types import Metrics
from server_app.report.reading import Half, Record, Run
from server_app.report.stats import CHOICE, LONGER, PREFERENCE, TOKENS, accuracy_metric, planted, purity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

INK, SOFT, GRID = "#20242b", "#5c6470", "#d9dde3"
BLUE, RED, GREEN, AMBER, SKY = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9"  # Okabe and Ito 2008
THEME = {
    "#ffffff": "paper", INK: "ink", SOFT: "soft", GRID: "grid",
    BLUE: "blue", RED: "red", GREEN: "green", AMBER: "amber", SKY: "sky",
}  # fmt: skip
BLACK = "#000000"  # text on AMBER and SKY, which are light on a dark page too
GROUPS = (
    (BLUE, "#ffffff"),
    (AMBER, BLACK),
    (GREEN, "#ffffff"),
    (SKY, BLACK),
    (RED, "#ffffff"),
)  # cell and text
STAGES = {"load": GRID, "train": BLUE, "wire": AMBER, "aggregate": GREEN, "evaluate": SKY}
MOST_NAMED, MOST_COLUMNS = 40, 12  # clients, groupings; beyond these a cell has no room for text
STYLE: "dict[RcKeyType, Any]" = {  # Any: matplotlib's own type of a setting
    "svg.fonttype": "none",  # text stays text: selectable, in the page's own font
    "svg.hashsalt": "accord",  # the same run gives the same bytes
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 2.0,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.handlelength": 1.9,
    "legend.columnspacing": 1.4,
}


@dataclass(frozen=True)
class Plot:
    name: str  # of its file, without suffix
    title: str
    caption: str
    svg: str


def plots(run: Run) -> list[Plot]:
    """All plots that have data."""
    return [plot for draw in (accuracy, losses, clusters, traffic, times) if (plot := draw(run)) is not None]


def accuracy(run: Run) -> Plot | None:
    """Accuracy by round: mean, worst client and range over clients, with base and longer-answer baseline as lines."""
    metric = accuracy_metric(run)
    if metric is None:
        return None
    title = "Token accuracy" if metric == TOKENS else "Preference accuracy"

    def draw(ax: "Axes") -> None:
        records = [r for r in run.records if metric in r.eval.mean]
        _draw_band(ax, records, lambda r: r.eval, metric, BLUE, scale=100)
        lowest = [
            (r.round, 100 * min(values)) for r in records if (values := r.eval.by_client(metric).values())
        ]
        if lowest:
            ax.plot(*zip(*lowest, strict=True), color=RED, linestyle="--", label="worst client")
        base = next((r.eval.mean[metric] for r in records if r.round == 0), None)
        longer = next((r.eval.mean[LONGER] for r in reversed(run.records) if LONGER in r.eval.mean), None)
        if base is not None:
            ax.axhline(100 * base, color=SOFT, linestyle=":", linewidth=1.6, label="base model")
        if longer is not None and metric != TOKENS:
            ax.axhline(100 * longer, color=GREEN, linestyle="-.", linewidth=1.6, label="longer answer wins")
        ax.set_ylabel("% of held-out " + ("tokens" if metric == TOKENS else "pairs"))

    caption = {
        PREFERENCE: "Share of held-out pairs in which the model finds the chosen answer more likely. ",
        CHOICE: "Share of held-out pairs in which the model picks the chosen answer. ",
        TOKENS: "Share of held-out tokens that the model predicts. ",
    }[metric] + "The band runs from the lowest to the highest client."
    return draw_plot("accuracy", f"{title} by round", caption, draw)


def losses(run: Run) -> Plot | None:
    """Training loss and, if measured, held-out loss by round."""
    trained = [r for r in run.records if "loss" in r.train.mean]
    held_out = [r for r in run.records if "loss" in r.eval.mean]
    if not trained and not held_out:
        return None

    def draw(ax: "Axes") -> None:
        _draw_band(
            ax, trained, lambda r: r.train, "loss", BLUE, mean="training, mean", extent="training, clients"
        )
        if held_out:
            line = [(r.round, r.eval.mean["loss"]) for r in held_out]
            ax.plot(*zip(*line, strict=True), color=RED, linestyle="--", marker="s", label="held-out, mean")
        ax.set_ylabel("loss")

    caption = "Mean over clients of the loss in a round's local steps. The band is the range over clients."
    return draw_plot("loss", "Loss by round", caption, draw)


def clusters(run: Run) -> Plot | None:
    """The group of each client after each grouping, ordered by planted type if known."""
    records = [r for r in run.records if r.route and any(_has_comparison(m) for m in r.eval.clients.values())]
    if not records:
        return None
    truth = planted(run)
    clients = sorted({c for r in records for c in r.route}, key=lambda c: (truth.get(c, -1), c))
    names = sorted({name for r in records for name in r.route.values()}, key=lambda name: (len(name), name))
    types = [truth.get(c) for c in clients]
    has_labels = len(clients) <= MOST_NAMED and len(records) <= MOST_COLUMNS

    def draw(ax: "Axes") -> None:
        for number, name in enumerate(names):
            cell, text = GROUPS[number % len(GROUPS)]
            places = [
                (x, clients.index(c)) for x, r in enumerate(records) for c in r.route if r.route[c] == name
            ]
            x, y = zip(*places, strict=True)
            ax.barh(y, 0.94, 0.88, [place - 0.47 for place in x], color=cell, label=name)
            for place in places if has_labels else ():
                ax.text(*place, name, color=text, ha="center", va="center", fontsize=8)
        for y, (above, below) in enumerate(pairwise(types)):
            if above != below:
                ax.axhline(y + 0.5, color=INK, linewidth=1.2)
        for client_type in sorted({client_type for client_type in types if client_type is not None}):
            rows = [y for y, other in enumerate(types) if other == client_type]
            ax.text(
                len(records) - 0.4, (rows[0] + rows[-1]) / 2, f"type {client_type}", color=SOFT, va="center"
            )
        ax.set_xlim(-0.5, len(records) - 0.5)
        ax.set_ylim(len(clients) - 0.5, -0.5)
        ticks = range(0, len(records), -(-len(records) // MOST_COLUMNS))
        ax.set_xticks(ticks, [_column_label(records[x], truth) for x in ticks])
        ax.set_yticks(
            range(len(clients)),
            [run.mark(c) for c in clients] if len(clients) <= MOST_NAMED else [""] * len(clients),
        )
        for label in ax.get_yticklabels():
            label.set_parse_math(False)  # a client name may hold two dollar signs
        ax.set_ylabel("client")
        ax.grid(False)

    caption = "The adapter that each client was assigned at each grouping. "
    if truth:
        caption += "Clients are ordered by planted type; the purity of the groups is below each round."
    return draw_plot(
        "groups", "Groups of clients", caption, draw, height=max(2.4, min(9.0, 1.4 + 0.21 * len(clients)))
    )


def _has_comparison(metrics: Metrics) -> bool:
    """Whether a client compared adapters in this round."""
    return any(name.startswith("loss/") for name in metrics)


def _column_label(record: Record, truth: Mapping[int, int]) -> str:
    clients = [c for c in record.route if c in truth]
    if not clients:
        return str(record.round)
    return f"{record.round}\n{100 * purity([record.route[c] for c in clients], [truth[c] for c in clients]):.0f} %"


def traffic(run: Run) -> Plot | None:
    """Bytes sent and received by the server, cumulative over rounds."""
    records = [r for r in run.records if r.bytes_up is not None or r.bytes_down is not None]
    if not records:
        return None

    def draw(ax: "Axes") -> None:
        from matplotlib.ticker import FuncFormatter

        from server_app.report.formatting import size

        x = [r.round for r in records]
        down = list(accumulate(r.bytes_down or 0 for r in records))
        up = list(accumulate(r.bytes_up or 0 for r in records))
        ax.plot(x, down, color=SKY, marker="o", label="server to clients")
        ax.plot(x, up, color=BLUE, linestyle="--", marker="s", label="clients to server")
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda count, _: size(count)))

    return draw_plot("bytes", "Bytes on the wire", "Cumulative over rounds, summed over clients.", draw)


def times(run: Run) -> Plot | None:
    """Seconds of each round, stacked by stage."""
    records = [r for r in run.records if any(stage in r.seconds for stage in STAGES)]
    if not records:
        return None

    def draw(ax: "Axes") -> None:
        bottom = [0.0] * len(records)
        for stage, colour in STAGES.items():
            if not any(stage in r.seconds for r in records):
                continue
            height = [max(0.0, r.seconds.get(stage, 0.0)) for r in records]
            x = [r.round for r in records]
            ax.bar(x, height, 0.75, bottom, color=colour, edgecolor=SOFT, linewidth=0.4, label=stage)
            bottom = [a + b for a, b in zip(bottom, height, strict=True)]
        ax.set_ylabel("seconds")

    return draw_plot(
        "time",
        "Time by round",
        "Seconds of a round by stage; wire includes waiting for a free client process.",
        draw,
    )


def themed(svg: str) -> str:
    """Replace the plot's colours by CSS variables (--ink, --blue, ...), for a page with a dark mode."""
    for colour, name in THEME.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg[svg.index("<svg") :]


def _draw_band(
    ax: "Axes",
    records: list[Record],
    half: Callable[[Record], Half],
    metric: str,
    colour: str,
    *,
    scale: float = 1,
    mean: str = "mean",
    extent: str = "all clients",
) -> None:
    """Draw the mean as a line over a band from the lowest to the highest client."""
    values = [(r.round, list(half(r).by_client(metric).values())) for r in records]
    extents = [(rnd, scale * min(v), scale * max(v)) for rnd, v in values if len(v) > 1]
    if extents:
        x, low, high = zip(*extents, strict=True)
        ax.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0, label=extent)
    x = [r.round for r in records]
    ax.plot(x, [scale * half(r).mean[metric] for r in records], color=colour, marker="o", label=mean)


def draw_plot(
    name: str,
    title: str,
    caption: str,
    draw: "Callable[[Axes], None]",
    *,
    x: str = "round",
    height: float = 3.4,
) -> Plot:
    """Draw a figure in the report's style. x: label of the horizontal axis; height: in inches."""
    import matplotlib as mpl  # takes a second to import, and only the server's report needs it

    mpl.use("Agg")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.4, height), layout="constrained")
        ax = figure.subplots()
        ax.set_xlabel(x)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        draw(ax)
        ax.margins(x=0.03)
        figure.legend(loc="outside lower center", ncols=3)
        return Plot(name, title, caption, _svg(figure))


def _svg(figure: "Figure") -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
