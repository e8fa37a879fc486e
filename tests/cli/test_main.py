"""What the command line says about itself."""

import re

import pytest
from typer.testing import CliRunner

from cli import main as accord
from cli.main import app
from core.errors import ConfigError
from server_app.report import console
from tests.server_app.report.sample import dpo_record, write_run


def said(*words: str) -> str:
    done = CliRunner().invoke(app, [*words], terminal_width=80)
    assert done.exit_code == 0, done.output
    return done.output


def test_every_plugin_is_listed_with_its_first_sentence():
    text = said("list")
    told = re.findall(r"^  [a-z]+  +(.*)$", text, re.M)
    assert len(told) > 20
    assert not [line for line in told if not line.endswith((".", "?"))]
    assert "  kto           KTO: learn from thumbs up and down.\n" in text
    assert "an explicit reward beside the implicit one.\n" in text, "which two lines of the source say"


def test_the_help_says_what_every_command_does_on_one_line():
    text = said("--help")
    commands = re.findall(r"^  ([a-z]+)  +(\S.*)$", text.partition("Commands:")[2], re.M)
    assert len(commands) == len(app.registered_commands) == 13
    assert not [command for command, what in commands if what.endswith("...")]


def test_a_run_of_a_deployment_is_resumed_there_and_nowhere_else(tmp_path):
    run = write_run(tmp_path, [dpo_record(0)], status="running", federation="deployment")
    done = CliRunner().invoke(app, ["resume", str(run)])
    assert isinstance(done.exception, ConfigError)
    assert f"accord resume {run} federation.superlink=NAME" in str(done.exception)
    assert f"accord resume {run} federation.superlink=NAME" in console.summary_lines(run)[-1]


def test_an_unexpected_error_is_told_without_its_text_and_without_variables(monkeypatch, capsys):
    """Both may be a row; accord doctor and accord check have rows in hand."""

    def fault() -> None:
        row = "marker-77b0"
        int(row)

    monkeypatch.setattr(accord, "app", fault)
    with pytest.raises(SystemExit, match="1"):
        accord.main()
    told = capsys.readouterr()
    assert "unexpected ValueError" in told.err
    assert "test_main.py" in told.err
    assert "marker-77b0" not in told.err.replace('row = "marker-77b0"', "") + told.out
    assert not app.pretty_exceptions_show_locals
