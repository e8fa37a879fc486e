"""What the command line says about itself."""

import re

from typer.testing import CliRunner

from accord import app


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
    assert len(commands) == len(app.registered_commands) == 12
    assert not [command for command, what in commands if what.endswith("...")]
