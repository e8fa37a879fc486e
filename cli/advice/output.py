"""Output of `accord advise`: advice.md, advice.html, advice.json, the plots, and the lines for the terminal."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

from cli.advice.conflict import Conflict, draw_conflict, find_clusters, read_conflict
from cli.advice.plot import draw_gains
from cli.advice.recommend import (
    FEDAVG,
    LOCAL,
    NAMES,
    ORDER,
    Advice,
    Results,
    advise,
    differences,
    gain,
    harmed,
    mean,
    read_results,
)
from core import store
from core.naming import client_label, client_mark
from server_app.report import page
from server_app.report.documents import markdown, subtitle
from server_app.report.formatting import ABSENT, Table, aligned, counted, interval, percent, ranges, value
from server_app.report.reading import Run
from server_app.report.stats import METHOD_OF_GAINS, Estimate, adjusted_rand, planted

METHOD = (
    f"Accuracy: share of a client's held-out pairs in which the model that it would use finds the chosen answer more "
    f"likely; clients are weighted equally. {METHOD_OF_GAINS} Harmed: share of clients with a lower accuracy than "
    "alone, by any amount. Combined: accuracy of the implicit and explicit reward together. An option is recommended "
    "over simpler ones if the whole interval of its gain over the option chosen so far is above 0."
)
WIDTH = 100
Names = Mapping[int, str]  # client -> its name
NO_NAMES: Names = MappingProxyType({})


def write_advice(folder: Path, runs: Mapping[str, Run]) -> list[str]:
    """Write the advice on finished runs, one for each option; returns lines for the terminal."""
    results = {name: read_results(runs[name]) for name in ORDER}
    scores = {name: result.scores for name, result in results.items()}
    probe, seed = runs[FEDAVG], int(runs[FEDAVG].config["run.seed"])
    conflict, truth = read_conflict(probe.dir), planted(probe)
    groups = find_clusters(conflict.apart)
    advice = advise(scores, int(runs["clusters"].config["strategy.selectors"]), seed=seed)
    chosen = advice.option if advice.is_conclusive else LOCAL
    drawn = [draw_conflict(conflict, groups, truth), draw_gains(scores, chosen, seed=seed)]
    names = probe.names
    table = options(results, seed, names)
    contents = page.Contents(
        title="Federate, cluster or personalise?",
        subtitle=subtitle(probe),
        state=f"Advice: {advice.word}.",
        resume=None,
        verdict=advice.reason,
        headline=headline(results, advice, seed, names),
        method=METHOD,
        plots=[plot for plot in drawn if plot],
        sections=[
            ("Options", table),
            ("Clusters", clusters(conflict, groups)),
            (
                "Clients",
                clients(
                    scores,
                    results[FEDAVG],
                    dict(zip(conflict.clients, groups, strict=True)),
                    truth,
                    probe.names,
                ),
            ),
            ("Differences", pairs(scores, seed)),
            (
                "Runs",
                Table(
                    ("option", "folder"), tuple((NAMES[o], _relative_path(folder, runs[o])) for o in ORDER)
                ),
            ),
        ],
        answers=[],
    )
    _write(folder, contents)
    typed = [(c, g) for c, g in zip(conflict.clients, groups, strict=True) if c in truth]
    rand = adjusted_rand([str(g) for _, g in typed], [truth[c] for c, _ in typed]) if typed else None
    document = {
        **asdict(advice),
        "options": {
            name: {"mean": mean(s), "clients": {str(c): v for c, v in s.items()}}
            for name, s in scores.items()
        },
        "clusters": {str(c): g for c, g in zip(conflict.clients, groups, strict=True)},
        **({"adjusted_rand": rand} if rand is not None else {}),
    }
    store.write_text(folder / "advice.json", json.dumps(document, indent=1) + "\n")
    return [
        "",
        *aligned(table),
        "harmed: share of clients whose accuracy is lower than alone",
        "",
        f"advice   {advice.word}",
        *textwrap.wrap(advice.reason, WIDTH, initial_indent=" " * 9, subsequent_indent=" " * 9),
        f"report   {folder / 'advice.html'}",
        *([f"run      {runs[advice.option].dir}"] if advice.is_conclusive else []),
    ]


def options(results: Mapping[str, Results], seed: int, names: Names = NO_NAMES) -> Table:
    """One row per option, the simplest first, below a row for the base."""
    scores = {name: result.scores for name, result in results.items()}
    combined = any(result.combined for result in results.values())
    head = ("option", "mean", "worst client", "over alone", "95 %", "over FedAvg", "95 %", "harmed")
    rows = []
    if base := results[FEDAVG].base:
        rows.append(("base", percent(mean(base)), _worst(base, names), *[ABSENT] * (5 + combined)))
    for name in ORDER:
        row = [NAMES[name], percent(mean(scores[name])), _worst(scores[name], names)]
        for other in (LOCAL, FEDAVG):
            change = None if name == other else gain(scores[other], scores[name], seed=seed)
            row += [value(change).removesuffix(" points"), interval(change)] if change else [ABSENT] * 2
        harmed_share = None if name == LOCAL else harmed(scores[LOCAL], scores[name])
        row.append(percent(harmed_share.value) if harmed_share else ABSENT)
        if combined:
            row.append(percent(mean(results[name].combined)) if results[name].combined else ABSENT)
        rows.append(tuple(row))
    head += ("combined",) if combined else ()
    return Table(head, tuple(rows), numbers=tuple(range(1, len(head))))


def headline(
    results: Mapping[str, Results], advice: Advice, seed: int, names: Names = NO_NAMES
) -> list[Estimate]:
    """The cards: mean accuracy of the base and of the advised option, the gain of that, and its worst client."""
    chosen = results[advice.option].scores
    count, base = len(chosen), results[FEDAVG].base
    lowest = min(chosen, key=lambda c: (chosen[c], c))
    cards = [Estimate("before", "Mean accuracy, base", mean(base), n=len(base), of="clients")] if base else []
    cards.append(
        Estimate("after", f"Mean accuracy, {NAMES[advice.option]}", mean(chosen), n=count, of="clients")
    )
    baseline = FEDAVG if advice.option == LOCAL else LOCAL
    cards.append(gain(results[baseline].scores, chosen, f"Gain over {NAMES[baseline]}", seed=seed))
    return [*cards, Estimate("worst", f"Worst client ({client_mark(lowest, names)})", chosen[lowest])]


def clusters(conflict: Conflict, groups: Sequence[int]) -> Table:
    """Clients of each cluster, and mean cosine of `apart` within the cluster and to the other clients."""
    rows = []
    for group in sorted(set(groups)):
        members = [i for i, g in enumerate(groups) if g == group]
        outside = [i for i, g in enumerate(groups) if g != group]
        inside = [conflict.apart[i, j] for i in members for j in members if i != j]
        across = [conflict.apart[i, j] for i in members for j in outside]
        numbers = ranges(sorted(conflict.clients[i] for i in members))
        rows.append(
            (str(group), counted(len(members), "client"), numbers, *(_cosine(v) for v in (inside, across)))
        )
    return Table(("cluster", "size", "clients", "cosine inside", "to others"), tuple(rows), numbers=(0, 3, 4))


def clients(
    scores: Mapping[str, Mapping[int, float]],
    probe: Results,
    groups: Mapping[int, int],
    truth: Mapping[int, int],
    names: Names = NO_NAMES,
) -> Table:
    """Accuracy of every client with every option."""
    rows = [
        (
            client_label(client, names),
            str(groups.get(client, ABSENT)),
            *((str(truth.get(client, ABSENT)),) if truth else ()),
            percent(probe.base.get(client)),
            *(percent(scores[name].get(client)) for name in ORDER),
        )
        for client in sorted(set().union(*scores.values()))
    ]
    head = ("client", "cluster", *(("type",) if truth else ()), "base", *(NAMES[name] for name in ORDER))
    return Table(head, tuple(rows), numbers=tuple(range(len(head))))


def pairs(scores: Mapping[str, Mapping[int, float]], seed: int) -> Table:
    """Gain of every option over every simpler one."""
    rows = tuple(
        (f"{NAMES[b]} - {NAMES[a]}", value(change).removesuffix(" points"), interval(change))
        for (a, b), change in differences(scores, seed=seed).items()
    )
    return Table(("difference", "points", "95 %"), rows, numbers=(1, 2))


def _write(folder: Path, contents: page.Contents) -> None:
    with store.writing(folder / "advice.html"):
        (folder / "plots").mkdir(exist_ok=True)
        for plot in contents.plots:
            (folder / "plots" / f"{plot.name}.svg").write_text(plot.svg, "utf-8")
        (folder / "advice.md").write_text(markdown(contents), "utf-8")
        (folder / "advice.html").write_text(page.html(contents), "utf-8")


def _worst(scores: Mapping[int, float], names: Names) -> str:
    client = min(scores, key=lambda c: (scores[c], c))
    return f"{percent(scores[client])} ({client_mark(client, names)})"


def _cosine(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):+.2f}" if values else ABSENT


def _relative_path(folder: Path, run: Run) -> str:
    return str(run.dir.relative_to(folder))
