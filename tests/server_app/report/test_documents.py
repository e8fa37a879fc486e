"""report.md and report.html: the numbers are there, and no text from a client becomes markup."""

import re
import time
from html.parser import HTMLParser

import pytest

from core.naming import shown_name
from server_app.report.documents import write_report
from tests.server_app.report.sample import EVIL, dpo_record, dpo_run, sft_record, write_run

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Tags, attributes and visible text; asserts that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def written(folder) -> tuple[str, Page]:
    write_report(folder)
    return (folder / "report.md").read_text(), Page((folder / "report.html").read_text())


def test_names_of_clients_are_shown_with_their_numbers_and_are_escaped(tmp_path):
    clients = {
        str(c): {"examples": 9, "name": EVIL + "\n\x1b[31m" + "$a$" * 9 if c == 5 else f"site {c}"}
        for c in range(8)
    }
    folder = dpo_run(tmp_path, clients=clients)
    text, page = written(folder)
    assert "script" not in page.tags
    assert "Worst client (<script>ale..., 5)" in page.text  # the lowest after 12 rounds
    name = shown_name(clients["5"]["name"])
    assert len(name) == 40
    assert f"{name} (5)" in page.text  # whose answer was missing in round 4
    assert "site 6 (6)" in page.text
    assert "| 5 | &lt;script>alert(1)&lt;/script>" in text
    assert "| 3 | site 3 |" in text


def test_a_finished_run_shows_its_numbers(tmp_path):
    """280 of 384 pairs after 12 rounds, 192 before: 72.9 % and 50.0 %, 22.9 points."""
    md, page = written(dpo_run(tmp_path))
    for text in (md, page.text):
        assert "72.9 %" in text
        assert "50.0 %" in text
        assert "Finished: 12 of 12 rounds in 1 min 14 s." in text
    assert "| Gain over the base | +22.9 points |" in md
    assert "| 5 | 45 | 0 | 48 | 50.0 % | 54.2 % | +4.2 | 11 | 1 |" in md
    assert "| 4 | 6 | no answer within 60 s |" in md
    assert "accord resume" not in page.text
    assert page.tags.count("svg") == 4


def test_the_page_loads_nothing_and_runs_nothing(tmp_path):
    _, page = written(dpo_run(tmp_path))
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    links = [v for k, v in page.attributes if k in ("src", "href", "xlink:href", "action") and v]
    assert all(v.startswith("#") for v in links), links
    assert not [k for k, _ in page.attributes if k.startswith("on")]
    html = (next(tmp_path.iterdir()) / "report.html").read_text()
    assert not re.findall(r"url\((?!#)|@import", html)


def test_untrusted_text_is_shown_and_never_becomes_markup(tmp_path):
    record = dpo_record(1, absent=(3,))
    record["failed"]["3"] = EVIL
    answers_of_model = [{"prompt": EVIL, "before": EVIL, "after": "````\n" + EVIL}]
    folder = write_run(
        tmp_path, [dpo_record(0), record], answers=answers_of_model, status=f"failed: {EVIL}",
        clients={"0": {"examples": 3, "skipped": {EVIL: 2}}}, task=EVIL, config={"model.name": EVIL},
        versions={"torch": EVIL}, base={"name": EVIL, "fingerprint": EVIL}, data={"0": EVIL},
    )  # fmt: skip
    md, page = written(folder)
    assert "script" not in page.tags
    assert page.text.count("alert(1)") >= 9
    fenced = re.search(r"^(`{5,})text\n.*?^\1$", md, re.S | re.M)  # longer than any fence inside
    assert fenced
    outside = md.replace(fenced.group(), "")
    assert "<script" not in outside
    for table in re.findall(r"(?:^\|.*\n)+", outside, re.M):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, table


@pytest.mark.parametrize(("status", "says"), [
    ("running", "Not finished: still running, or killed, with 1 of 12 rounds complete."),
    ("failed: 3 of 8 replies", "Failed with 1 of 12 rounds complete: 3 of 8 replies"),
])  # fmt: skip
def test_an_unfinished_run_says_so_at_the_top(tmp_path, status, says):
    md, page = written(write_run(tmp_path, [dpo_record(0), dpo_record(1)], status=status))
    assert says in md[:400]
    assert says in page.text
    assert "accord resume" in md
    assert ("role", "alert") in page.attributes


def test_a_run_that_never_evaluated_has_a_report_without_numbers(tmp_path):
    records = [{**dpo_record(r), "eval": {}} for r in range(3)]
    md, page = written(write_run(tmp_path, records))
    assert "## Headline" not in md
    assert "Nothing was evaluated" in page.text
    assert "0.0 %" not in page.text
    assert "| 1 | 0-7 | 0.6624 | 336 kB | 672 kB | 6.7 s |" in md


def test_a_run_without_records_has_a_report(tmp_path):
    md, page = written(write_run(tmp_path, [], status="failed: no clients came", clients={}, data={}))
    assert "no clients came" in md
    assert page.tags.count("svg") == 0


def test_sft_has_no_preference_numbers(tmp_path):
    records = [sft_record(r) for r in range(4)]
    md, page = written(write_run(tmp_path, records, task="sft", strategy={"name": "local"}))
    assert "Preference" not in page.text
    assert "Wilson" not in page.text
    assert "| Token accuracy, round 3 | 46.0 % | - | 30 rows |" in md


def test_a_report_of_twelve_rounds_takes_under_five_seconds(tmp_path):
    folder = dpo_run(tmp_path)
    start = time.monotonic()
    write_report(folder)
    assert time.monotonic() - start < 5
