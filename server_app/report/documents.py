"""report.md and report.html of a run folder, finished or not."""

import shlex
from collections import Counter
from pathlib import Path

from core.naming import shown_name
from server_app.report import page
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
from server_app.report.plots import plots
from server_app.report.reading import Record, Run, read_run
from server_app.report.rlft import epochs, labels, rlft_plots
from server_app.report.stats import METHOD, TOKENS, accuracy_metric, first_and_last, headline, worst


def write_report(run_dir: Path | str) -> None:
    """Write report.md, report.html (self-contained) and plots/*.svg. Raises DataError on a broken folder."""
    run = read_run(run_dir)
    estimates = headline(run)
    contents = page.Contents(
        title=f"{run.task} with {run.strategy}",
        subtitle=subtitle(run),
        state=state(run),
        resume=None if run.status == "finished" else f"accord resume {shlex.quote(str(run.dir))}",
        verdict=" ".join(said for said in (verdict(estimates), *alarms(run)) if said) or None,
        headline=estimates,
        method=METHOD if any(e.low is not None for e in estimates) else "",
        plots=[*plots(run), *rlft_plots(run)],
        sections=[(title, table) for title, table in sections(run).items() if table.rows],
        answers=run.answers,
    )
    folder = run.dir / "plots"
    folder.mkdir(exist_ok=True)
    for plot in contents.plots:
        (folder / f"{plot.name}.svg").write_text(plot.svg, "utf-8")
    (run.dir / "report.md").write_text(markdown(contents), "utf-8")
    (run.dir / "report.html").write_text(page.html(contents), "utf-8")


def subtitle(run: Run) -> str:
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
    """The tables of a report by title; the last ones are for looking up."""
    return {
        "Clients": clients(run),
        "About the rows": Table(("",), tuple((note,) for note in notes(run.manifest, run.names))),
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
    """Every client: its rows, its accuracy before and after, the rounds it took part in."""
    metric = accuracy_metric(run)
    base, last = first_and_last(run, metric) if metric else (None, None)
    before = base.eval.by_client(metric) if base and metric else {}
    after = last.eval.by_client(metric) if last and metric else {}
    joined = Counter(client for record in run.records for client in record.participants)
    lost = Counter(client for record in run.records for client in record.failed)
    about = {int(client): facts for client, facts in (run.manifest.get("clients") or {}).items()}
    rows = []
    for client in sorted({*about, *before, *after, *joined, *lost}):
        facts = about.get(client, {})
        shown = [r for r in (last, base) if r and "examples" in r.eval.clients.get(client, {})]
        change = after[client] - before[client] if client in after and client in before else None
        rows.append((
            str(client),
            *((shown_name(run.names.get(client)) or ABSENT,) if run.names else ()),
            _count(facts.get("examples")),
            _skipped(facts.get("skipped")),
            _count(shown[0].eval.clients[client]["examples"] if shown else None),
            percent(before.get(client)),
            percent(after.get(client)),
            ABSENT if change is None else points(change),
            str(joined[client]),
            str(lost[client]),
        ))  # fmt: skip
    what = "token acc." if metric == TOKENS else "accuracy"
    named = ("name",) if run.names else ()
    head = (
        "client",
        *named,
        "rows",
        "skipped",
        "held out",
        f"{what}, base",
        "after",
        "change",
        "rounds",
        "failed",
    )
    return Table(
        head, tuple(rows), numbers=tuple(i for i, h in enumerate(head) if h not in ("name", "skipped"))
    )


def failures(run: Run) -> Table:
    """Who was asked and did not answer in time, with the reason given."""
    found = [
        (str(r.round), run.label(c), plain(why)) for r in run.records for c, why in sorted(r.failed.items())
    ]
    return Table(("round", "client", "reason"), tuple(found), numbers=(0,) if run.names else (0, 1))


def remarks(run: Run) -> Table:
    """What the strategy had to say of a round, e.g. that too few clients answered for a robust mean."""
    rows = [(str(record.round), remark) for record in run.records for remark in record.remarks]
    return Table(("round", "remark"), tuple(rows), numbers=(0,))


def rounds(run: Run) -> Table:
    """One row a round: who trained, and every evaluated mean."""
    metrics = sorted({name for r in run.records for name in r.eval.mean if name != "examples"})
    main = accuracy_metric(run)
    head = ("round", "clients", "train loss", *metrics, *(("worst",) if main else ()), "up", "down", "time")
    body = tuple(_round(run, record, metrics, main) for record in run.records)
    return Table(head, body, numbers=tuple(i for i in range(len(head)) if i != 1))


def versions(run: Run) -> Table:
    m = run.manifest
    rows = [("commit", m.get("commit")), ("base model", (m.get("base") or {}).get("name"))]
    rows += [("base fingerprint", (m.get("base") or {}).get("fingerprint"))]
    rows += [(name, version) for name, version in sorted((m.get("versions") or {}).items())]
    prints = sorted((m.get("data") or {}).items(), key=_id)
    rows += [(f"data of client {run.label(int(c))}", print_) for c, print_ in prints]
    return Table(("what", "value"), tuple((name, str(found)) for name, found in rows if found))


def markdown(contents: page.Contents) -> str:
    """The report for a terminal or a forge; the plots are files beside it."""
    c = contents
    parts = [f"# {_text(c.title)}", _text(c.subtitle), f"**{_text(c.state)}**"]
    if c.resume:
        parts.append(f"Continue: `{c.resume}`")
    if c.verdict:
        parts.append(_text(c.verdict))
    if c.headline:
        lines = tuple((e.name, value(e), interval(e), sample_size(e)) for e in c.headline)
        parts += ["## Headline", _table(Table(("", "value", "95 % interval", "over"), lines, (1, 2, 3)))]
        parts.append(c.method)
    for plot in c.plots:
        parts += [f"## {plot.title}", f"![{plot.title}](plots/{plot.name}.svg)", plot.caption]
    if c.answers:
        parts.append("## The same prompts, before and after")
        for a in c.answers:
            told = "\n".join(f"{who}\n{said}" for who, said in _told(a.prompt, a.before, a.after))
            fence = "`" * max(3, 1 + _longest_run(told, "`"))
            parts.append(f"{fence}text\n{told}\n{fence}")
    for title, table in c.sections:
        parts += [f"## {title}", _table(table)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _round(run: Run, record: Record, metrics: list[str], main: str | None) -> tuple[str, ...]:
    low = worst(record.eval, main) if main else None
    shown = [
        percent(record.eval.mean.get(m)) if "accurac" in m else number(record.eval.mean.get(m))
        for m in metrics
    ]
    return (
        str(record.round),
        ranges(sorted(record.participants)) or ABSENT,
        number(record.train.mean.get("loss")),
        *shown,
        *((f"{percent(low[1])} ({run.mark(low[0])})" if low else ABSENT,) if main else ()),
        size(record.bytes_up),
        size(record.bytes_down),
        duration(record.total_s),
    )


def _told(prompt: str, before: str, after: str) -> list[tuple[str, str]]:
    said = [("prompt:", prompt), ("before:", before), ("after:", after)]
    return [(who, printable(text) or ABSENT) for who, text in said]


def _table(table: Table) -> str:
    rule = tuple("---:" if i in table.numbers else "---" for i in range(len(table.head)))
    rows = [tuple(map(_text, table.head)), rule, *(tuple(map(_text, row)) for row in table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _text(cell: str) -> str:
    """A cell that Markdown shows as it is: no markup, no HTML, no column break."""
    cell = cell.replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
    for mark in "|`*_[]":
        cell = cell.replace(mark, "\\" + mark)
    return cell


def _longest_run(text: str, mark: str) -> int:
    longest = 0
    while mark * (longest + 1) in text:
        longest += 1
    return longest


def _skipped(reasons: dict[str, int] | None) -> str:
    return ", ".join(f"{count} {plain(why)}" for why, count in sorted((reasons or {}).items())) or "0"


def _count(rows: float | None) -> str:
    return ABSENT if rows is None else f"{rows:,.0f}"


def _id(item: tuple[str, object]) -> int:
    return int(item[0])
