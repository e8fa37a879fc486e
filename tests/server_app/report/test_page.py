"""The page: whatever text it holds, its markup is that of the template."""

from dataclasses import replace

import pytest

from server_app.report.formatting import Table
from server_app.report.page import LONGEST_UNFOLDED, Contents, html
from server_app.report.plots import Plot
from server_app.report.reading import Answer
from server_app.report.stats import Estimate
from tests.server_app.report.test_documents import Page

HOSTILE = "<script>alert(1)</script> 'x' onload=\"y\" & {{ 7 * 7 }} {% raw %}\nsecond line"
CONTENTS = Contents(
    title="title",
    subtitle="subtitle",
    state="state",
    resume="accord resume runs/x",
    verdict="50.0 % of the time",
    headline=[Estimate("after", "card", 0.5, 0.4, 0.6, 10), Estimate("kl", "metric", 0.25, unit="number")],
    method="method",
    plots=[Plot("loss", "plot", "caption", "<svg><text>loss</text></svg>")],
    sections=[("section", Table(("head",), (("cell",),), (0,)))],
    answers=[Answer("prompt", "before", "after")],
)


def hostile(text: str) -> str:
    return f"{text} {HOSTILE}"


def hostile_contents() -> Contents:
    """CONTENTS with hostile text in every field that may hold a name or a reason."""
    c = CONTENTS
    estimates = [replace(estimate, name=hostile(estimate.name)) for estimate in c.headline]
    table = Table((hostile("head"),), ((hostile("cell"),),), (0,))
    answer = Answer(*(hostile(text) for text in ("prompt", "before", "after")))
    return replace(
        c, title=hostile(c.title), subtitle=hostile(c.subtitle), state=hostile(c.state), resume=hostile(str(c.resume)),
        verdict=hostile(str(c.verdict)), headline=estimates, method=hostile(c.method),
        plots=[replace(c.plots[0], title=hostile("plot"), caption=hostile("caption"))],
        sections=[(hostile("section"), table)], answers=[answer],
    )  # fmt: skip


def test_hostile_text_is_shown_as_it_is_and_adds_no_markup():
    plain, page = Page(html(CONTENTS)), Page(html(hostile_contents()))
    assert page.tags == plain.tags
    assert [name for name, _ in page.attributes] == [name for name, _ in plain.attributes]
    assert ("aria-label", hostile("plot")) in page.attributes
    assert page.text.replace("\N{NO-BREAK SPACE}", " ").count(HOSTILE) == 17  # the title also in <title>


def test_the_svg_of_a_plot_is_markup_in_the_colours_of_the_page():
    svg = '<?xml version="1.0"?><svg><path style="stroke: #0072b2"/></svg>'
    text = html(replace(CONTENTS, plots=[Plot("loss", "Loss", "", svg)]))
    assert '<svg><path style="stroke: var(--blue)"/></svg>' in text


@pytest.mark.parametrize(("count", "tag"), [(LONGEST_UNFOLDED, "section"), (LONGEST_UNFOLDED + 1, "details")])
def test_a_long_section_is_folded(count, tag):
    text = html(replace(CONTENTS, answers=[], sections=[("Clients", Table(("client",), (("1",),) * count))]))
    assert f"</{tag}>" in text


def test_numbers_are_aligned_to_the_right():
    table = Table(("name", "count"), (("a", "1"),), numbers=(1,))
    text = html(replace(CONTENTS, sections=[("Rounds", table)]))
    assert "<th>name</th><th class=num>count</th>" in text
    assert "<td>a</td><td class=num>1</td>" in text
