"""The numbers of a benchmark reach terminal, report and card without a line about that benchmark anywhere."""

import importlib
import json
import sys
from pathlib import Path

import pytest

import evals
from core.config import parse
from server_app.report.benchmarks import METHOD, benchmark_table
from server_app.report.card import write_card
from server_app.report.documents import write_report
from server_app.report.formatting import Table
from server_app.report.reading import read_run
from server_app.report.summary import summary_lines
from tests.server_app.report.sample import dpo_run
from tests.server_app.report.test_documents import Page

THROWAWAY = '''"""Throwaway: how many words a model answers to a fixed question, and how often it answers at all."""

from dataclasses import dataclass

@dataclass(frozen=True)
class Throwaway:
    def check(self):
        pass

    def run(self, talker):
        answers = talker.generate(["one?", "two?", "three?", "four?"])
        answered = [answer for answer in answers if answer]
        metrics = {"words": sum(len(a.split()) for a in answered) / len(answers)}
        return {**metrics, "answered/accuracy": len(answered) / len(answers), "examples": 4.0}

PLUGIN = Throwaway
'''


class Answers:
    """A model that gives these answers."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    def generate(self, prompts):
        return self.answers

    def logprob(self, prompt, answers):
        raise AssertionError("not needed")


@pytest.fixture
def throwaway(tmp_path, monkeypatch):
    """A plugin of evals/ called throwaway."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "throwaway.py").write_text(THROWAWAY)
    monkeypatch.setattr(evals, "__path__", [*evals.__path__, str(tmp_path / "plugins")])
    importlib.invalidate_caches()
    yield
    sys.modules.pop("evals.throwaway", None)


def with_benchmarks(folder: Path, results: dict) -> Path:
    (folder / "benchmarks.json").write_text(json.dumps(results))
    return folder


def test_a_new_benchmark_is_in_terminal_report_and_card(throwaway, tmp_path):
    """Two of four answered with 3 words each, then four of four with 3, 3, 3 and 4."""
    (choice,) = parse({"eval.benchmarks": "throwaway"}).benchmarks
    talkers = {"before": Answers("a b c", "", "a b c", ""), "after": Answers(*["a b c"] * 3, "a b c d")}
    results = {choice.name: {when: choice.build().run(talker) for when, talker in talkers.items()}}
    folder = with_benchmarks(dpo_run(tmp_path), results)
    write_report(folder)
    write_card(folder)
    lines = [line.split() for line in summary_lines(folder)]
    assert ["throwaway", "words", "1.5", "-", "3.25", "-", "4", "rows"] in lines
    shares = "throwaway answered/accuracy 50.0 % 15.0 to 85.0 100.0 % 51.0 to 100.0 4 rows"
    assert shares.split() in lines
    page = Page((folder / "report.html").read_text())
    for cell in ("throwaway", "words", "answered/accuracy", "3.25", "51.0 to 100.0"):
        assert f">{cell}<" in (folder / "report.html").read_text()
    assert METHOD in page.text
    for name in ("report.md", "README.md"):
        text = (folder / name).read_text()
        assert "| throwaway | words | 1.5 | - | 3.25 | - | 4 rows |" in text
        assert (
            "| throwaway | answered/accuracy | 50.0 % | 15.0 to 85.0 | 100.0 % | 51.0 to 100.0 | 4 rows |"
            in text
        )
        assert METHOD in text


def test_intervals_are_only_of_shares_of_counted_rows(tmp_path):
    """3 of 8 is a share; a mean of 0.4 over 8 rows, a share of unknown rows and a number above 1 are none."""
    measured = {"a/accuracy": 0.375, "b/accuracy": 0.4, "c/accuracy": 1.5, "score": 0.5, "examples": 8.0}
    results = {
        "x": {"before": {}, "after": measured},
        "y": {"after": {"accuracy": 0.5, "lost": float("nan")}},
    }
    table = benchmark_table(read_run(with_benchmarks(dpo_run(tmp_path), results)))
    assert table == Table(
        ("benchmark", "metric", "base", "trained", "95 % interval", "over"),
        (
            ("x", "a/accuracy", "-", "37.5 %", "13.7 to 69.4", "8 rows"),
            ("x", "b/accuracy", "-", "40.0 %", "-", "8 rows"),
            ("x", "c/accuracy", "-", "150.0 %", "-", "8 rows"),
            ("x", "score", "-", "0.5", "-", "8 rows"),
            ("y", "accuracy", "-", "50.0 %", "-", "-"),
        ),
        numbers=(2, 3, 4, 5),
    )


def test_without_intervals_there_is_no_column_and_no_method(tmp_path):
    folder = with_benchmarks(
        dpo_run(tmp_path), {"speed": {"before": {"words": 2.0}, "after": {"words": 3.0}}}
    )
    write_report(folder)
    text = (folder / "report.md").read_text()
    assert "| benchmark | metric | base | trained | over |" in text
    assert "| speed | words | 2 | 3 | - |" in text
    assert METHOD not in text


def test_without_benchmarks_nothing_is_said_about_them(tmp_path):
    folder = dpo_run(tmp_path)
    write_report(folder)
    write_card(folder)
    texts = [(folder / name).read_text() for name in ("report.md", "report.html", "README.md")]
    assert not [text for text in texts if "Benchmarks" in text]
    assert not [line for line in summary_lines(folder) if line.startswith("  benchmark")]


def test_the_name_of_a_metric_is_no_markup(tmp_path):
    evil = "<script>alert(1)</script> | \x1b[31m\nx"
    folder = with_benchmarks(dpo_run(tmp_path), {"x": {"after": {evil: 1.0}}})
    write_report(folder)
    write_card(folder)
    assert "script" not in Page((folder / "report.html").read_text()).tags
    for name in ("report.md", "README.md"):
        assert (
            "| x | &lt;script>alert(1)&lt;/script> \\| \\[31m x | - | 1 | - |" in (folder / name).read_text()
        )
    assert "\x1b" not in "".join(summary_lines(folder))
