"""Plot of the gain of every option over each client alone: mean with interval, and a mark for each client."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cli.advice.recommend import LOCAL, NAMES, ORDER, Scores, gain
from server_app.report.plots import AMBER, BLUE, SOFT, Plot, draw_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_gains(scores: Mapping[str, Scores], chosen: str, *, seed: int) -> Plot:
    """Draw the gains. scores: of each option in ORDER; chosen: the option drawn in amber."""
    alone, options = scores[LOCAL], ORDER[1:]

    def draw(ax: "Axes") -> None:
        for y, name in enumerate(options):
            estimate = gain(alone, scores[name], seed=seed)
            clients = sorted(scores[name].keys() & alone.keys())
            gains = [100 * (scores[name][c] - alone[c]) for c in clients]
            label = "client" if y == 0 else None
            ax.plot(gains, [y] * len(gains), "|", color=SOFT, markersize=13, label=label)
            colour = AMBER if name == chosen else BLUE
            if estimate.low is not None and estimate.high is not None:
                ax.plot(
                    [100 * estimate.low, 100 * estimate.high], [y, y], color=colour, linewidth=4, alpha=0.55
                )
            label = "mean, 95 %" if y == 0 else None
            ax.plot(100 * estimate.value, y, "o", color=colour, markersize=9, label=label)
        ax.axvline(0, color=SOFT, linestyle=":", linewidth=1.6)
        ax.set_yticks(range(len(options)), [NAMES[name] for name in options])
        ax.set_ylim(len(options) - 0.5, -0.5)
        ax.grid(axis="x")
        ax.grid(visible=False, axis="y")

    advised = f" In amber: {NAMES[chosen]}." if chosen in options else ""
    caption = (
        f"Held-out accuracy of each client minus its accuracy alone; clients left of 0 are harmed.{advised}"
    )
    return draw_plot("gains", "Gain over each client alone", caption, draw, x="points", height=5.0)
