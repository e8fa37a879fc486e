"""The command line: start, resume and inspect federations. A thin layer over `flwr run`.

`flwr run . --stream` does the same work without it. The command line adds presets merged with overrides, a
SuperLink that is stopped after the run, quiet output, and an exit code that tells whether the run succeeded.
"""

import traceback

import typer
import typer.core

from cli.commands import machines, plugins, runs
from cli.machine.environment import prepare_process
from core.errors import AccordError

HELP = "Federated preference alignment of language models on Flower."
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help=HELP,
    rich_markup_mode=None,
    pretty_exceptions_show_locals=False,  # a local variable may be a row
)

typer.core.HAS_RICH = False  # otherwise typer escapes `[default: ...]` for rich markup, which is off

for command in (runs.run, runs.check, runs.demo, runs.advise, runs.resume, machines.site):
    app.command()(command)
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)(machines.node)
for command in (machines.provision, machines.start, machines.register, machines.doctor, runs.status):
    app.command()(command)
app.command("list")(plugins.list_plugins)


def main() -> None:
    """Entry point of the console script. A user's mistake is reported on one line, with exit code 2."""
    prepare_process()
    try:
        app()
    except AccordError as error:
        typer.echo(f"accord: {error}", err=True)
        raise SystemExit(2) from None
    except OSError as error:  # a full or read-only disk, where no caller gave a better message
        typer.echo(f"accord: {error.filename or 'cannot write'}: {error.strerror or error}", err=True)
        raise SystemExit(1) from None
    except Exception as error:  # a bug: the message may quote a row, the stack frames do not
        frames = "".join(traceback.format_tb(error.__traceback__))
        typer.echo(
            f"accord: unexpected {type(error).__name__}; please report it with these lines:\n{frames}",
            err=True,
        )
        raise SystemExit(1) from None
