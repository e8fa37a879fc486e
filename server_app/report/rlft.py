"""RLFT in a report: a table of the epochs of every policy, one of its labels, and two plots."""

from typing import TYPE_CHECKING

from core.types import Json
from server_app.report.formatting import ABSENT, Table, number, percent
from server_app.report.plots import AMBER, BLUE, GREEN, RED, SKY, Plot, drawn
from server_app.report.reading import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (BLUE, RED, GREEN, AMBER, SKY)
JUDGE = ("judge/win_rate", "judge/accuracy")  # the one a judge has


def epochs(run: Run) -> Table:
    """One row an epoch; epoch 0 is the untouched policy."""
    head = ("policy", "epoch", "pairs", "loss", "margin", "signal", "judge", "KL", "tokens", "")
    body = [
        (
            name,
            str(e["epoch"]),
            str(e["pairs"]) if "pairs" in e else ABSENT,
            number(e.get("loss")),
            number(e.get("rewards/margins")),
            percent(e["signal/win_rate"]),
            percent(_judged(e)),
            number(e["kl"]),
            number(e["tokens"]),
            _mark(policy, e["epoch"]),
        )
        for name, policy in run.policies.items()
        for e in policy["epochs"]
    ]
    return Table(head, tuple(body), numbers=tuple(range(1, 9)))


def labels(run: Run) -> Table:
    """One row a turn: how many pairs were labelled, how sure of it the vote was, and what was left out."""
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
    """Every plot that has data."""
    return [plot for draw in (hacking_curve, best_of_n) if (plot := draw(run)) is not None]


def hacking_curve(run: Run) -> Plot | None:
    """The selectors' signal and the held-out judgement by epoch: where they part, the policy pleases its teachers."""
    if not run.policies:
        return None

    def draw(ax: "Axes") -> None:
        for (name, policy), colour in zip(run.policies.items(), COLOURS, strict=False):
            told = policy["epochs"]
            x = [e["epoch"] for e in told]
            signal = [100 * e["signal/win_rate"] for e in told]
            ax.plot(x, signal, color=colour, linestyle="--", marker="s", label=f"{_short(name)}, selectors")
            judged = [(e["epoch"], 100 * share) for e in told if (share := _judged(e)) is not None]
            if judged:
                ax.plot(*zip(*judged, strict=True), color=colour, marker="o", label=f"{_short(name)}, judge")
            ax.axvline(policy["best"], color=colour, linestyle=":", linewidth=1.2)
        ax.set_ylabel("% won against the references")

    caption = (
        "Greedy answers to held-out prompts against the reference answers: by the selectors that labelled, and by a "
        "judge that took no part. A signal that rises over a falling judgement is reward hacking. "
        "Dotted: the epoch that is kept."
    )
    return drawn("policy", "The policy by epoch", caption, draw, x="epoch")


def best_of_n(run: Run) -> Plot | None:
    """What the selectors' pick among n answers of the base is worth."""
    curves = {name: policy["best_of_n"] for name, policy in run.policies.items() if policy.get("best_of_n")}
    if not curves:
        return None
    who = (
        "judge"
        if any("round_robin/judge/win_rate" in row for row in next(iter(curves.values())))
        else "signal"
    )

    def draw(ax: "Axes") -> None:
        for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
            for way, style, mark in (("round_robin", "-", "o"), ("knockout", "--", "s")):
                line = [(row["n"], 100 * row[f"{way}/{who}/win_rate"]) for row in curve]
                told = f"{_short(name)}, {way.replace('_', '-')}"
                ax.plot(*zip(*line, strict=True), color=colour, linestyle=style, marker=mark, label=told)
        ax.set_ylabel("% won against the references")

    said = "the judge" if who == "judge" else "the selectors themselves"
    caption = f"The answer that the selectors pick among the first n of the base's, against the reference, by {said}."
    return drawn("best-of-n", "Best of n", caption, draw, x="n")


def _judged(epoch: Json) -> float | None:
    return next((epoch[name] for name in JUDGE if name in epoch), None)


def _short(name: str) -> str:
    """For a legend."""
    return "all" if name == "population" else name


def _mark(policy: Json, epoch: int) -> str:
    marks = (
        "kept" if epoch == policy["best"] else "",
        "judgement turned" if epoch == policy["turned"] else "",
    )
    return ", ".join(mark for mark in marks if mark)
