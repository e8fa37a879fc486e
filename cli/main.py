"""The command line: start, resume and inspect federations. A thin layer over `flwr run`.

`flwr run . --stream` does the same work without it. The command line adds presets merged with overrides, a
SuperLink that is stopped after the run, quiet output, and an exit code that tells whether the run succeeded.
"""

import os
import re
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from cli.advice import arms
from cli.machine.environment import cleaned, prepare_process
from cli.machine.processes import ROOT, environment, read_kit
from cli.provision import kits, serve
from cli.provision.federation import read_federation
from cli.run.launch import QUIET, launch
from cli.run.request import Request, federated, parse_arguments, recorded_federation, request, run_folder
from core.config import defaults, parse
from core.errors import AccordError, ConfigError
from core.plugins import knobs, names, plugin
from server_app.report.reading import ADVICE, read_config, read_run
from server_app.run_folder import RunFolder

HELP = "Federated preference alignment of language models on Flower."
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help=HELP,
    rich_markup_mode=None,
    pretty_exceptions_show_locals=False,  # a local variable may be a row
)

SECTION_OF = {"tasks": "task", "strategies": "strategy", "tasks.data": "data", "evals": "eval"}


@app.command()
def run(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[PRESET.toml ...] [KEY=VALUE ...]")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show Flower's own log lines as well.")
    ] = False,
) -> None:
    """Run a federation, as a simulation here or on a deployment.

    federation.superlink=NAME selects a deployment: a SuperLink in the config.toml of FLWR_HOME.
    """
    run_request = request(arguments or [])
    for line in run_request.notes:
        typer.echo(line)
    raise SystemExit(launch(run_request, verbose=verbose))


@app.command()
def check(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[PRESET.toml ...] [KEY=VALUE ...]")
    ] = None,
    show_rows: Annotated[
        int,
        typer.Option(min=0, help="Print this many rows as the model will see them. Rows are private text."),
    ] = 0,
    warnings_only: Annotated[bool, typer.Option("--brief", hidden=True)] = False,
) -> None:
    """Check a run before it starts: rows, lengths, model, memory.

    Takes the arguments of `accord run`. If the run could not start, prints the reason on one line and exits with 2.
    """
    from cli.check import survey  # imports the model libraries, which are slow to load
    from cli.check.rehearsal import rehearse

    run_request = request(arguments or [])
    for line in rehearse(run_request, survey, show_rows=show_rows, warnings_only=warnings_only):
        typer.echo(line)


@app.command()
def demo() -> None:
    """Align the built-in toy model on eight simulated clients.

    Runs federated DPO with the default of every key.
    """
    raise SystemExit(launch(request([]), verbose=False))


@app.command()
def advise(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[PRESET.toml | ADVICE] [KEY=VALUE ...]")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v")] = False,
) -> None:
    """Compare local, federated, clustered and personalised training.

    ADVICE is the folder of an earlier comparison, which is continued.
    """
    first, rest = Path(arguments[0]) if arguments else None, (arguments or [])[1:]
    earlier = first if first and (first / ADVICE).is_file() else None
    keys, federation = parse_arguments([str(earlier / ADVICE), *rest] if earlier else arguments or [])
    if earlier and any(not argument.startswith("federation.") for argument in rest):
        raise ConfigError(
            f"{earlier.name} continues with its recorded settings; only federation.* can be set, got {rest}"
        )
    federation = federated(keys, federation)
    arms.check(keys)
    for line in arms.early_warnings(federation):
        typer.echo(line)
    parent = Path(str(keys.get("run.dir", "runs"))).expanduser().resolve()
    folder = earlier or arms.open_folder(
        {**keys, **{f"federation.{k}": v for k, v in federation.items()}}, parent
    )
    raise SystemExit(
        arms.run_arms(folder.resolve(), keys, lambda arm: launch(Request(arm, federation), verbose=verbose))
    )


@app.command()
def resume(
    folder: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or the name of one in runs/.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v")] = False,
) -> None:
    """Continue a run from its last committed round."""
    path = run_folder(folder)
    recorded, _ = read_config(path)
    keys, federation = parse_arguments(arguments or [])
    location = {"run.resume": str(path.resolve()), "run.dir": str(path.resolve().parent)}
    run_request = Request({**recorded, **keys, **location}, recorded_federation(path, recorded, federation))
    RunFolder.reopen(parse(run_request.keys))
    raise SystemExit(launch(run_request, verbose=verbose))


@app.command()
def site(
    file: Annotated[Path, typer.Argument(metavar="SITE.toml")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]")] = None,
) -> None:
    """Serve a site: hold its rows and the base model between runs.

    The SuperNode on the same machine reaches it at the address in its node config.
    """
    from cli.site.service import main as serve  # imports the model libraries, which are slow to load
    from cli.site.site_file import SiteFile

    serve(SiteFile.read(file, arguments or []))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def node(context: typer.Context) -> None:
    """Run flower-supernode with these arguments and shorter waits.

    Flower's waits between messages are shortened (docs/sites.md).
    """
    for note in cleaned(os.environ)[1]:
        typer.echo(f"accord: {note}", err=True)
    program = str(ROOT / "cli" / "site" / "node.py")
    os.execve(sys.executable, [sys.executable, program, *context.args], {**environment(), **QUIET})


@app.command()
def provision(
    federation: Annotated[Path | None, typer.Argument(metavar="FEDERATION.toml")] = None,
    out: Annotated[Path, typer.Option(help="The folder of the kits, made or updated.")] = Path("kits"),
    renew: Annotated[bool, typer.Option("--renew", help="Make a new certificate for the server.")] = False,
    site_key: Annotated[
        Path | None, typer.Option(metavar="KIT", help="At a site: make the site's own key in its kit.")
    ] = None,
) -> None:
    """Make certificates, keys, and a kit for the server and each site."""
    if (federation is None) == (site_key is None):
        raise ConfigError(
            "expected FEDERATION.toml (on the server) or --site-key KIT (at a site), and not both"
        )
    lines = kits.provision(read_federation(federation), out, renew=renew) if federation else []
    for line in [kits.make_site_key(site_key)] if site_key else lines:
        typer.echo(line)


@app.command()
def start(
    kit: Annotated[Path, typer.Argument(metavar="KIT")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]")] = None,
) -> None:
    """Start a kit's process: the SuperLink, or a site's SuperNode.

    KEY=VALUE overrides a key of the kit's site.toml.
    """
    if read_kit(kit)["kind"] == "server":
        if arguments:
            raise ConfigError(f"{kit} is the kit of a server, which takes no KEY=VALUE; got {arguments[0]!r}")
        serve.start(kit)
    program = (
        "import sys; sys.path[0] = sys.argv[1]; from cli.site.supervise import main; main(*sys.argv[2:])"
    )
    os.execv(  # replaces this process, so that the modules loaded here take no memory
        sys.executable, [sys.executable, "-c", program, str(ROOT), str(kit), *(arguments or [])]
    )


@app.command()
def register(kit: Annotated[Path, typer.Argument(metavar="KIT")]) -> None:
    """Register this kit's sites with the server; remove former ones."""
    for line in serve.register(kit):
        typer.echo(line)


@app.command()
def doctor(
    place: Annotated[Path | None, typer.Argument(metavar="[KIT | SITE.toml]")] = None,
) -> None:
    """Check this machine, and a kit or a site's file.

    Prints what is wrong and how to fix it; exits with 1 if a run would fail.
    """
    from cli.machine import checks
    from cli.provision import server_checks
    from cli.site import site_checks

    results = [*checks.versions(), *checks.machine()]
    if place is None:
        results.append(checks.disk("runs", Path("runs").resolve()))
    elif place.is_dir() and read_kit(place)["kind"] == "server":
        results += server_checks.checks(place)
    else:
        results += site_checks.checks(place)
    for result in results:
        typer.echo(result.line())
    raise SystemExit(1 if any(result.verdict == "no" for result in results) else 0)


@app.command()
def status(
    folder: Annotated[
        str, typer.Argument(metavar="[RUN]", help="A run folder; by default the newest in runs/.")
    ] = "",
    kit: Annotated[
        Path | None, typer.Option(help="The server's kit: print whether its sites are connected.")
    ] = None,
    port: Annotated[int, typer.Option(help="Serve the run's Prometheus metrics on this loopback port.")] = 0,
) -> None:
    """Show the state of a run; with a kit, which sites are connected.

    The state includes the round, and the missing clients with the last round of each.
    """
    from cli import status as run_status

    for name, state, since in serve.sites(kit) if kit else ():
        typer.echo(f"site     {name}: {state}{f' since {since}' if since else ''}")
    newest = sorted(p.parent for p in Path("runs").glob("*/config.toml"))
    if not folder and not newest:
        if kit:
            return
        raise ConfigError("no run in runs/: name a run folder, or start one with `accord run`")
    path = run_folder(folder) if folder else newest[-1]
    if port:
        run_status.serve(path, port)
    for line in run_status.lines(read_run(path)):
        typer.echo(line)


@app.command("list")
def list_plugins() -> None:
    """Print every plugin and every key with its default."""
    for package, section in SECTION_OF.items():
        typer.echo(f"{package.replace('.', '/')}/")
        for name in names(package):
            cls = plugin(package, name)
            summary = " ".join((sys.modules[cls.__module__].__doc__ or "").split("\n\n")[0].split())
            typer.echo(f"  {name:<14}{re.split(r'(?<=[.])[ ]', summary)[0]}")
            for key, default in knobs(cls).items():
                typer.echo(f"    {section}.{key} = {default!r}")
    typer.echo("keys")
    for key, default in defaults().items():
        typer.echo(f"  {key} = {default!r}")


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
