"""RLFT in a report: tables of epochs and of labels of every policy, and two plots."""

from typing import TYPE_CHECKING

from core.types import Json
from server_app.report.formatting import ABSENT, Table, number, percent
from server_app.report.plots import AMBER, BLUE, GREEN, RED, SKY, Plot, draw_plot
from server_app.report.reading import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (BLUE, RED, GREEN, AMBER, SKY)
JUDGE = ("judge/win_rate", "judge/accuracy")  # a judge has one of them


def epochs(run: Run) -> Table:
    """One row per epoch; epoch 0 is the untrained policy."""
    head = ("policy", "epoch", "pairs", "loss", "margin", "signal", "judge", "KL", "tokens", "")
    body = [
        (
            name,
            str(e["epoch"]),
            str(e["pairs"]) if "pairs" in e else ABSENT,
            number(e.get("loss")),
            number(e.get("rewards/margins")),
            percent(e["signal/win_rate"]),
            percent(_judge_share(e)),
            number(e["kl"]),
            number(e["tokens"]),
            _epoch_remark(policy, e["epoch"]),
        )
        for name, policy in run.policies.items()
        for e in policy["epochs"]
    ]
    return Table(head, tuple(body), numbers=tuple(range(1, 9)))


def labels(run: Run) -> Table:
    """One row per turn: pairs labelled, confidence and agreement of the vote, and pairs left out."""
    head = ("policy", "turn", "pairs", "confidence", "agreement", "both orders agree", "left out")
    body = [
        (
            name,
            str(turn["turn"]),
            str(turn["pairs"]),
            percent(turn["label_confidence"]),
            percent(turn["agreement"]),
            percent(turn.get("order_consistency")),
            ", ".join(f"{count} {why}" for why, count in sorted(turn["left_out"].items())) or "0",
        )
        for name, policy in run.policies.items()
        for turn in policy["labels"]
    ]
    return Table(head, tuple(body), numbers=(1, 2, 3, 4, 5))


def rlft_plots(run: Run) -> list[Plot]:
    """All plots that have data."""
    return [plot for draw in (hacking_curve, best_of_n) if (plot := draw(run)) is not None]


def hacking_curve(run: Run) -> Plot | None:
    """The selectors' signal and the held-out judgement by epoch; they diverge under reward hacking."""
    if not run.policies:
        return None

    def draw(ax: "Axes") -> None:
        for (name, policy), colour in zip(run.policies.items(), COLOURS, strict=False):
            epochs = policy["epochs"]
            x = [e["epoch"] for e in epochs]
            signal = [100 * e["signal/win_rate"] for e in epochs]
            ax.plot(
                x, signal, color=colour, linestyle="--", marker="s", label=f"{_legend_name(name)}, selectors"
            )
            judged = [(e["epoch"], 100 * share) for e in epochs if (share := _judge_share(e)) is not None]
            if judged:
                ax.plot(
                    *zip(*judged, strict=True), color=colour, marker="o", label=f"{_legend_name(name)}, judge"
                )
            ax.axvline(policy["best"], color=colour, linestyle=":", linewidth=1.2)
        ax.set_ylabel("win rate over the references (%)")

    caption = (
        "Win rate of greedy answers over the reference answers on held-out prompts, by the selectors that labelled the "
        "training pairs and by an independent judge. A rising signal with a falling judgement is reward hacking. "
        "Dotted line: the epoch that is kept."
    )
    return draw_plot("policy", "The policy by epoch", caption, draw, x="epoch")


def best_of_n(run: Run) -> Plot | None:
    """Win rate of the answer that the selectors pick among n answers of the base."""
    curves = {name: policy["best_of_n"] for name, policy in run.policies.items() if policy.get("best_of_n")}
    if not curves:
        return None
    scorer = (
        "judge"
        if any("round_robin/judge/win_rate" in row for row in next(iter(curves.values())))
        else "signal"
    )

    def draw(ax: "Axes") -> None:
        for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
            for method, style, symbol in (("round_robin", "-", "o"), ("knockout", "--", "s")):
                line = [(row["n"], 100 * row[f"{method}/{scorer}/win_rate"]) for row in curve]
                label = f"{_legend_name(name)}, {method.replace('_', '-')}"
                ax.plot(*zip(*line, strict=True), color=colour, linestyle=style, marker=symbol, label=label)
        ax.set_ylabel("win rate over the references (%)")

    assessor = "the judge" if scorer == "judge" else "the selectors themselves"
    caption = (
        f"Win rate over the reference of the selectors' pick among the first n base answers, by {assessor}."
    )
    return draw_plot("best-of-n", "Best of n", caption, draw, x="n")


def _judge_share(epoch: Json) -> float | None:
    return next((epoch[name] for name in JUDGE if name in epoch), None)


def _legend_name(name: str) -> str:
    """Short name of a policy for a legend."""
    return "all" if name == "population" else name


def _epoch_remark(policy: Json, epoch: int) -> str:
    marks = (
        "kept" if epoch == policy["best"] else "",
        "judgement falls afterwards" if epoch == policy["turned"] else "",
    )
    return ", ".join(mark for mark in marks if mark)
