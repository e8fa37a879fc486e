"""The HTML page of a report: a single file without scripts or external resources; all text is escaped."""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import DictLoader, Environment, StrictUndefined

from server_app.report.formatting import ABSENT, Table, interval, printable, sample_size, value
from server_app.report.page_template import PAGE, STYLE
from server_app.report.plots import Plot, themed
from server_app.report.reading import Answer
from server_app.report.stats import Estimate

# keys shown as cards; the rest of the headline is a table
CARDS = ("before", "after", "gain", "worst", "longer")
# sections that are shown unfolded, up to a number of rows
UNFOLDED = ("Benchmarks", "Options", "Clusters", "Clients", "Notes on the rows", "Failures", "Policies")
LONGEST_UNFOLDED = 40


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
    cards = [e for e in contents.headline if e.key in CARDS]
    rest = [e for e in contents.headline if e.key not in CARDS]
    if not cards:
        cards, rest = rest[:4], rest[4:]
    rows = tuple((e.name, value(e), interval(e), sample_size(e)) for e in rest)
    return (
        _environment()
        .get_template("page.html")
        .render(
            report=contents,
            cards=cards,
            metrics=Table(("other metrics", "value", "95 % interval", "over"), rows, (1, 2, 3)),
            unfolded=UNFOLDED,
            longest_unfolded=LONGEST_UNFOLDED,
            absent=ABSENT,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=DictLoader({"page.html": PAGE, "style.css": STYLE}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"value": value, "facts": _facts, "printable": printable, "themed": themed}
    return environment


def _facts(estimate: Estimate) -> list[str]:
    """The small print of a card: interval and number of observations, as far as known."""
    interval_text = f"95 %: {interval(estimate)}" if interval(estimate) != ABSENT else ABSENT
    return [fact for fact in (interval_text, sample_size(estimate)) if fact != ABSENT]
