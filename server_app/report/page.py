"""The HTML page of a report: a single file without scripts or external resources; all text is escaped."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from server_app.report.formatting import ABSENT, Table, interval, printable, sample_size, value
from server_app.report.plots import Plot, themed
from server_app.report.reading import Answer
from server_app.report.stats import Estimate

CARDS = (
    "before",
    "after",
    "gain",
    "worst",
    "longer",
)  # keys shown as cards; the rest of the headline is a table
# sections that are shown unfolded
OPEN = ("Options", "Clusters", "Clients", "Notes on the rows", "Failures", "Policies")


@dataclass(frozen=True)
class Contents:
    """The contents of a report, independent of its format. Texts are unescaped: the renderer escapes them."""

    title: str
    subtitle: str
    state: str
    resume: str | None  # the command that continues an unfinished run
    verdict: str | None
    headline: Sequence[Estimate]
    method: str  # how the intervals are computed; "" without intervals
    plots: Sequence[Plot]
    sections: Sequence[tuple[str, Table]]
    answers: Sequence[Answer]


def html(contents: Contents) -> str:
    """Render the page."""
    c = contents
    body = [
        f"<header><h1>{escape(c.title)}</h1><p class=sub>{escape(c.subtitle)}</p>{_state(c)}</header>",
        _headline(c),
        _plots(c.plots),
        _answers(c.answers),
        *(_section(title, table) for title, table in c.sections),
    ]
    return PAGE.replace("{title}", escape(c.title)).replace("{css}", CSS).replace("{body}", "\n".join(body))


def _state(c: Contents) -> str:
    if c.resume is None:
        return f"<p class=state>{escape(c.state)}</p>"
    continuation = f"<br>Continue: <code>{escape(c.resume)}</code>"
    return f"<p class='state alert' role=alert><strong>{escape(c.state)}</strong>{continuation}</p>"


def _headline(c: Contents) -> str:
    if not c.headline:
        return "<p class=note>Nothing was evaluated, so there are no headline numbers.</p>"
    cards = [e for e in c.headline if e.key in CARDS]
    rest = [e for e in c.headline if e.key not in CARDS]
    if not cards:
        cards, rest = rest[:4], rest[4:]
    rows = tuple((e.name, value(e), interval(e), sample_size(e)) for e in rest)
    table = (
        _table(Table(("other metrics", "value", "95 % interval", "over"), rows, (1, 2, 3))) if rows else ""
    )
    text = escape(c.verdict or "").replace(" %", "&nbsp;%")
    verdict = f"<p class=verdict>{text}</p>" if text else ""
    note = f"<p class=note>{escape(c.method)}</p>" if c.method else ""
    cards_html = "".join(map(_card, cards))
    return f"{verdict}<div class=cards>{cards_html}</div>{table}{note}"


def _card(estimate: Estimate) -> str:
    interval_text = f"95 %: {interval(estimate)}" if interval(estimate) != ABSENT else ABSENT
    facts = "<br>".join(escape(fact) for fact in (interval_text, sample_size(estimate)) if fact != ABSENT)
    amount, _, unit = value(estimate).partition(" ")
    accent = " accent" if estimate.key in ("after", "gain") else ""
    return (
        f"<div class='card{accent}'><div class=name>{escape(estimate.name)}</div>"
        f"<div class=value>{escape(amount)} <small>{escape(unit)}</small></div>"
        f"<div class=facts>{facts}</div></div>"
    )


def _plots(plots: Sequence[Plot]) -> str:
    figures = [
        f"<figure><h2>{escape(p.title)}</h2>"
        f"<div role=img aria-label='{escape(p.title)}'>{themed(p.svg)}</div>"
        f"<figcaption>{escape(p.caption)}</figcaption></figure>"
        for p in plots
    ]
    return f"<div class=plots>{''.join(figures)}</div>" if figures else ""


def _answers(answers: Sequence[Answer]) -> str:
    if not answers:
        return ""
    articles = [
        f"<article><p class=prompt>{escape(printable(a.prompt))}</p><div class=pair>"
        f"<div><h3>Before</h3><p>{escape(printable(a.before) or ABSENT)}</p></div>"
        f"<div><h3>After</h3><p>{escape(printable(a.after) or ABSENT)}</p></div></div></article>"
        for a in answers
    ]
    return f"<section><h2>The same prompts, before and after</h2>{''.join(articles)}</section>"


def _section(title: str, table: Table) -> str:
    folded = title not in OPEN or len(table.rows) > 40
    if folded:
        return f"<details><summary>{escape(title)}</summary>{_table(table)}</details>"
    return f"<section><h2>{escape(title)}</h2>{_table(table)}</section>"


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        kinds = [" class=num" if i in table.numbers else "" for i in range(len(cells))]
        return "".join(f"<{tag}{k}>{escape(cell)}</{tag}>" for k, cell in zip(kinds, cells, strict=True))

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in table.rows)
    head = f"<thead><tr>{row(table.head, 'th')}</tr></thead>"
    return f"<div class=scroll><table>{head}<tbody>{body}</tbody></table></div>"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{title}</title><style>{css}</style></head>
<body><main>
{body}
</main></body></html>
"""

CSS = """
:root { --paper: #fff; --panel: #f5f6f8; --ink: #20242b; --soft: #5c6470; --grid: #d9dde3;
  --alert: #fff3e6; --blue: #0072b2; --red: #d55e00; --green: #009e73; --amber: #e69f00; --sky: #56b4e9; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171c; --panel: #1d2128; --ink: #e6e9ee; --soft: #a2abb8; --grid: #3d444f;
    --alert: #3a2a17; --blue: #3f96d8; --red: #f08a45; --green: #35c69b; --amber: #f0b63c; --sky: #a8def8; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: .8rem; margin: 0; color: var(--soft); font-weight: 600; }
.sub, .note, figcaption, .facts { color: var(--soft); font-size: .875rem; }
.sub { margin: .3rem 0 0; }
.state { margin: .8rem 0 0; }
.alert { background: var(--alert); border-left: 4px solid var(--red); padding: .7rem 1rem; }
.alert { overflow-wrap: anywhere; }
.verdict { font-size: 1.15rem; margin: 1.5rem 0 1rem; max-width: 46em; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: .8rem;
  margin: 1.2rem 0; }
.card { background: var(--panel); border-radius: 8px; padding: .9rem 1rem;
  border-top: 3px solid var(--grid); break-inside: avoid; }
.card.accent { border-top-color: var(--blue); }
.card .name { font-size: .875rem; min-height: 2.6em; line-height: 1.3; }
.card .value { font-size: 1.6rem; font-weight: 650; font-variant-numeric: tabular-nums; white-space: nowrap; }
.card .value small { font-size: 1rem; font-weight: 400; color: var(--soft); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 0 2rem; }
figure { margin: 0; break-inside: avoid; }
figure svg { width: 100%; height: auto; display: block; }
figure svg text { font-family: inherit !important; }
figcaption { margin-top: .2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--grid);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
th.num, td.num { text-align: right; white-space: nowrap; }
td { overflow-wrap: anywhere; min-width: 3em; max-width: 46em; }
details { margin-top: 1.2rem; border-top: 1px solid var(--grid); padding-top: .8rem; }
summary { font-weight: 600; font-size: 1.1rem; cursor: pointer; margin-bottom: .5rem; }
article { background: var(--panel); border-radius: 8px; padding: .9rem 1rem; margin: .7rem 0;
  break-inside: avoid; }
article p { margin: .2rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.prompt { font-weight: 600; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 260px), 1fr));
  gap: .8rem 1.5rem; margin-top: .7rem; }
@media print {
  main { max-width: none; padding: 0; }
  body { font-size: 11px; }
  .plots { grid-template-columns: 1fr 1fr; }
}
"""
