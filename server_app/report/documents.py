"""report.md and report.html of a run folder, whether or not the run has finished."""

import shlex
from collections import Counter
from pathlib import Path

from core.naming import shown_name
from server_app.report import page
from server_app.report.benchmarks import benchmark_method, benchmark_table
from server_app.report.clients import notes
from server_app.report.formatting import (
    ABSENT,
    Table,
    alarms,
    counted,
    duration,
    interval,
    number,
    percent,
    plain,
    points,
    printable,
    ranges,
    sample_size,
    scalar,
    size,
    state,
    value,
    verdict,
)
from server_app.report.headline import headline
from server_app.report.plots import plots
from server_app.report.reading import Record, Run, read_run
from server_app.report.rlft import epochs, labels, rlft_plots
from server_app.report.stats import METHOD, TOKENS, accuracy_metric, first_and_last, is_share, worst


def write_report(run_dir: Path | str) -> None:
    """Write report.md, report.html (self-contained) and plots/*.svg. Raises DataError on a damaged run folder."""
    run = read_run(run_dir)
    estimates, tables = headline(run), sections(run)
    methods = (
        METHOD if any(e.low is not None for e in estimates) else "",
        benchmark_method(tables["Benchmarks"]),
    )
    contents = page.Contents(
        title=f"{run.task} with {run.strategy}",
        subtitle=subtitle(run),
        state=state(run),
        resume=None if run.status == "finished" else f"accord resume {shlex.quote(str(run.dir))}",
        verdict=" ".join(text for text in (verdict(estimates), *alarms(run)) if text) or None,
        headline=estimates,
        method=" ".join(method for method in methods if method),
        plots=[*plots(run), *rlft_plots(run)],
        sections=[(title, table) for title, table in tables.items() if table.rows],
        answers=run.answers,
    )
    folder = run.dir / "plots"
    folder.mkdir(exist_ok=True)
    for plot in contents.plots:
        (folder / f"{plot.name}.svg").write_text(plot.svg, "utf-8")
    (run.dir / "report.md").write_text(markdown(contents), "utf-8")
    (run.dir / "report.html").write_text(page.html(contents), "utf-8")


def subtitle(run: Run) -> str:
    """The line below the title: model, clients, seed, start time and version, as far as known."""
    model = str(run.config.get("model.name", run.manifest.get("base", {}).get("name", "")))
    facts = [
        f"model {model}" if model else "",
        counted(len(run.manifest["clients"]), "client") if run.manifest.get("clients") else "",
        f"seed {run.manifest['seed']}" if "seed" in run.manifest else "",
        f"started {run.manifest['started']}" if "started" in run.manifest else "",
        f"Accord {run.manifest['accord']}" if "accord" in run.manifest else "",
    ]
    return " · ".join(fact for fact in facts if fact)


def sections(run: Run) -> dict[str, Table]:
    """The tables of a report by title; details for reference come last."""
    return {
        "Benchmarks": benchmark_table(run),
        "Clients": clients(run),
        "Notes on the rows": Table(("",), tuple((note,) for note in notes(run.manifest, run.names))),
        "Failures": failures(run),
        "Remarks": remarks(run),
        "Policies": epochs(run),
        "Labels of the policies": labels(run),
        "Rounds": rounds(run),
        "Versions and fingerprints": versions(run),
        "Configuration": Table(
            ("key", "value"), tuple((key, scalar(v)) for key, v in sorted(run.config.items()))
        ),
    }


def clients(run: Run) -> Table:
    """One row per client: its rows, its accuracy before and after, the rounds it trained in and failed in."""
    metric = accuracy_metric(run)
    base, last = first_and_last(run, metric) if metric else (None, None)
    before = base.eval.by_client(metric) if base and metric else {}
    after = last.eval.by_client(metric) if last and metric else {}
    trained = Counter(client for record in run.records for client in record.participants)
    failed = Counter(client for record in run.records for client in record.failed)
    facts_by_client = {int(client): facts for client, facts in (run.manifest.get("clients") or {}).items()}
    rows = []
    for client in sorted({*facts_by_client, *before, *after, *trained, *failed}):
        facts = facts_by_client.get(client, {})
        scored = [r for r in (last, base) if r and "examples" in r.eval.clients.get(client, {})]
        change = after[client] - before[client] if client in after and client in before else None
        rows.append((
            str(client),
            *((shown_name(run.names.get(client)) or ABSENT,) if run.names else ()),
            _row_count(facts.get("examples")),
            _skip_reasons(facts.get("skipped")),
            _row_count(scored[0].eval.clients[client]["examples"] if scored else None),
            percent(before.get(client)),
            percent(after.get(client)),
            ABSENT if change is None else points(change),
            str(trained[client]),
            str(failed[client]),
        ))  # fmt: skip
    label = "token acc." if metric == TOKENS else "accuracy"
    name_column = ("name",) if run.names else ()
    head = (
        "client",
        *name_column,
        "rows",
        "skipped",
        "held out",
        f"{label}, base",
        "after",
        "change",
        "rounds",
        "failed",
    )
    return Table(
        head, tuple(rows), numbers=tuple(i for i, h in enumerate(head) if h not in ("name", "skipped"))
    )


def failures(run: Run) -> Table:
    """Clients that were sampled and did not answer, with the reason."""
    rows = [
        (str(r.round), run.label(c), plain(why)) for r in run.records for c, why in sorted(r.failed.items())
    ]
    return Table(("round", "client", "reason"), tuple(rows), numbers=(0,) if run.names else (0, 1))


def remarks(run: Run) -> Table:
    """Remarks of the strategy on a round, e.g. that too few clients answered for a robust mean."""
    rows = [(str(record.round), remark) for record in run.records for remark in record.remarks]
    return Table(("round", "remark"), tuple(rows), numbers=(0,))


def rounds(run: Run) -> Table:
    """One row per round: the clients that trained, and the mean of every metric."""
    metrics = sorted({name for r in run.records for name in r.eval.mean if name != "examples"})
    main = accuracy_metric(run)
    head = ("round", "clients", "train loss", *metrics, *(("worst",) if main else ()), "up", "down", "time")
    body = tuple(_round_row(run, record, metrics, main) for record in run.records)
    return Table(head, body, numbers=tuple(i for i in range(len(head)) if i != 1))


def versions(run: Run) -> Table:
    """Commit, package versions, and fingerprints of the base model and the clients' data."""
    manifest = run.manifest
    rows = [("commit", manifest.get("commit")), ("base model", (manifest.get("base") or {}).get("name"))]
    rows += [("base fingerprint", (manifest.get("base") or {}).get("fingerprint"))]
    rows += [(name, version) for name, version in sorted((manifest.get("versions") or {}).items())]
    fingerprints = sorted((manifest.get("data") or {}).items(), key=_client_number)
    rows += [(f"data of client {run.label(int(c))}", fingerprint) for c, fingerprint in fingerprints]
    return Table(("item", "value"), tuple((name, str(entry)) for name, entry in rows if entry))


def markdown(contents: page.Contents) -> str:
    """The report as Markdown; its plots are SVG files in plots/."""
    c = contents
    parts = [f"# {_escaped(c.title)}", _escaped(c.subtitle), f"**{_escaped(c.state)}**"]
    if c.resume:
        parts.append(f"Continue: `{c.resume}`")
    if c.verdict:
        parts.append(_escaped(c.verdict))
    if c.headline:
        lines = tuple((e.name, value(e), interval(e), sample_size(e)) for e in c.headline)
        parts += [
            "## Headline",
            markdown_table(Table(("", "value", "95 % interval", "over"), lines, (1, 2, 3))),
        ]
    parts.append(c.method)
    for plot in c.plots:
        parts += [f"## {plot.title}", f"![{plot.title}](plots/{plot.name}.svg)", plot.caption]
    if c.answers:
        parts.append("## The same prompts, before and after")
        for a in c.answers:
            text = "\n".join(
                f"{label}\n{content}" for label, content in _answer_texts(a.prompt, a.before, a.after)
            )
            fence = "`" * max(3, 1 + _longest_run(text, "`"))
            parts.append(f"{fence}text\n{text}\n{fence}")
    for title, table in c.sections:
        parts += [f"## {title}", markdown_table(table)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _round_row(run: Run, record: Record, metrics: list[str], main: str | None) -> tuple[str, ...]:
    lowest = worst(record.eval, main) if main else None
    values = [
        percent(record.eval.mean.get(m)) if is_share(m) else number(record.eval.mean.get(m)) for m in metrics
    ]
    return (
        str(record.round),
        ranges(sorted(record.participants)) or ABSENT,
        number(record.train.mean.get("loss")),
        *values,
        *((f"{percent(lowest[1])} ({run.mark(lowest[0])})" if lowest else ABSENT,) if main else ()),
        size(record.bytes_up),
        size(record.bytes_down),
        duration(record.total_s),
    )


def _answer_texts(prompt: str, before: str, after: str) -> list[tuple[str, str]]:
    parts = [("prompt:", prompt), ("before:", before), ("after:", after)]
    return [(label, printable(text) or ABSENT) for label, text in parts]


def markdown_table(table: Table) -> str:
    """The table in Markdown; its cells are escaped."""
    rule = tuple("---:" if i in table.numbers else "---" for i in range(len(table.head)))
    rows = [tuple(map(_escaped, table.head)), rule, *(tuple(map(_escaped, row)) for row in table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _escaped(cell: str) -> str:
    """Escape Markdown markup, HTML and column separators, so that untrusted text is shown literally."""
    cell = cell.replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
    for mark in "|`*_[]":
        cell = cell.replace(mark, "\\" + mark)
    return cell


def _longest_run(text: str, mark: str) -> int:
    longest = 0
    while mark * (longest + 1) in text:
        longest += 1
    return longest


def _skip_reasons(reasons: dict[str, int] | None) -> str:
    return ", ".join(f"{count} {plain(reason)}" for reason, count in sorted((reasons or {}).items())) or "0"


def _row_count(rows: float | None) -> str:
    return ABSENT if rows is None else f"{rows:,.0f}"


def _client_number(item: tuple[str, object]) -> int:
    return int(item[0])
