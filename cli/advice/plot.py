"""The gain of every option over each client alone: the mean with its interval, and each client as a dot."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cli.advice.recommend import LOCAL, NAMES, ORDER, Scores, gain
from server_app.report.plots import AMBER, BLUE, SOFT, Plot, draw_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_gains(scores: Mapping[str, Scores], chosen: str, *, seed: int) -> Plot:
    """scores: of each option in ORDER; chosen: the one in amber."""
    alone, others = scores[LOCAL], ORDER[1:]

    def draw(ax: "Axes") -> None:
        for y, name in enumerate(others):
            found = gain(alone, scores[name], seed=seed)
            each = [100 * (scores[name][c] - alone[c]) for c in sorted(scores[name].keys() & alone.keys())]
            ax.plot(each, [y] * len(each), "|", color=SOFT, markersize=13, label="client" if not y else None)
            colour = AMBER if name == chosen else BLUE
            if found.low is not None and found.high is not None:
                ax.plot([100 * found.low, 100 * found.high], [y, y], color=colour, linewidth=4, alpha=0.55)
            label = "mean, 95 %" if y == 0 else None
            ax.plot(100 * found.value, y, "o", color=colour, markersize=9, label=label)
        ax.axvline(0, color=SOFT, linestyle=":", linewidth=1.6)
        ax.set_yticks(range(len(others)), [NAMES[name] for name in others])
        ax.set_ylim(len(others) - 0.5, -0.5)
        ax.grid(axis="x")
        ax.grid(visible=False, axis="y")

    advised = f" In amber: {NAMES[chosen]}." if chosen in others else ""
    caption = f"Held-out accuracy of each client above its own alone; left of 0 it is harmed.{advised}"
    return draw_plot("gains", "Gain over each client alone", caption, draw, x="points", height=5.0)
