"""The help, lists and errors of the command line."""

import re

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from cli import main as accord
from cli.main import app
from core.errors import ConfigError
from server_app.report.summary import summary_lines
from tests.server_app.report.sample import dpo_record, write_run

COMMANDS = get_command(app).commands
PAGES = [
    (name,) for name, command in COMMANDS.items() if command.context_settings.get("help_option_names") != []
]


def output_of(*arguments: str) -> str:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, [*arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_every_plugin_is_listed_with_its_first_sentence():
    text = output_of("list")
    sentences = re.findall(r"^  [a-z]+  +(.*)$", text, re.M)
    assert len(sentences) > 20
    assert not [line for line in sentences if not line.endswith((".", "?"))]
    assert re.search(r"^  kto +KTO\b.*\.$", text, re.MULTILINE)
    assert "an explicit reward next to the implicit one.\n" in text


def test_the_help_describes_every_command_on_one_line():
    text = output_of("--help")
    commands = re.findall(r"^  ([a-z]+)  +(\S.*)$", text.partition("Commands:")[2], re.M)
    assert len(commands) == len(app.registered_commands) == 13
    assert not [command for command, summary in commands if summary.endswith("...")]


@pytest.mark.parametrize("command", [(), *PAGES], ids=" ".join)
def test_a_help_page_holds_no_backslash(command):
    assert "\\" not in output_of(*command, "--help")


@pytest.mark.parametrize("command", PAGES, ids=" ".join)
def test_a_help_page_describes_every_option_and_has_no_table_of_arguments(command):
    page = output_of(*command, "--help")
    options = re.findall(r"^  -.*", page, re.M)
    assert options
    assert not [option for option in options if not re.search(r"\S {2,}\S", option)]
    assert "Arguments:" not in page, "click drops the help of arguments: the docstring describes them"


def test_a_run_of_a_deployment_is_resumed_only_on_that_deployment(tmp_path):
    run = write_run(tmp_path, [dpo_record(0)], status="running", federation="deployment")
    result = CliRunner().invoke(app, ["resume", str(run)])
    assert isinstance(result.exception, ConfigError)
    assert f"accord resume {run} federation.superlink=NAME" in str(result.exception)
    assert f"accord resume {run} federation.superlink=NAME" in summary_lines(run)[-1]


def test_an_unexpected_error_is_reported_without_its_message_and_without_variables(monkeypatch, capsys):
    """Either may hold a row, because `accord doctor` and `accord check` read rows."""

    def fault() -> None:
        row = "marker-77b0"
        int(row)

    monkeypatch.setattr(accord, "app", fault)
    with pytest.raises(SystemExit, match="1"):
        accord.main()
    output = capsys.readouterr()
    assert "unexpected ValueError" in output.err
    assert "test_main.py" in output.err
    assert "marker-77b0" not in output.err.replace('row = "marker-77b0"', "") + output.out
    assert not app.pretty_exceptions_show_locals
