"""The command line: run, resume and look at federations. A thin layer over `flwr run`.

`flwr run . --stream` does the same work without it; this adds presets merged with overrides, a SuperLink
that is stopped again, quiet output, and an exit code that tells whether the run succeeded.
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
from cli.run.request import Request, federated, given, recorded_federation, request, run_folder
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
    words: Annotated[list[str] | None, typer.Argument(metavar="[PRESET.toml ...] [KEY=VALUE ...]")] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show Flower's own log lines as well.")
    ] = False,
) -> None:
    """Run a federation, here as a simulation or on a deployment.

    federation.superlink=NAME is a deployment: a SuperLink in the config.toml of FLWR_HOME.
    """
    asked = request(words or [])
    for line in asked.notes:
        typer.echo(line)
    raise SystemExit(launch(asked, verbose=verbose))


@app.command()
def check(
    words: Annotated[list[str] | None, typer.Argument(metavar="[PRESET.toml ...] [KEY=VALUE ...]")] = None,
    show_rows: Annotated[
        int, typer.Option(min=0, help="Print so many rows as the model will see them: private text.")
    ] = 0,
    brief: Annotated[bool, typer.Option("--brief", hidden=True)] = False,
) -> None:
    """Check a run before it starts: rows, lengths, model, memory.

    Takes the words of `accord run`; exits with 2 and one line for what would stop it.
    """
    from cli.check import survey  # the model libraries, which no other command waits for
    from cli.check.rehearsal import rehearse

    for line in rehearse(request(words or []), survey, show_rows=show_rows, brief=brief):
        typer.echo(line)


@app.command()
def demo() -> None:
    """Align the embedded toy model on eight simulated clients.

    The default of every key: federated DPO.
    """
    raise SystemExit(launch(request([]), verbose=False))


@app.command()
def advise(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[PRESET.toml | ADVICE] [KEY=VALUE ...]")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v")] = False,
) -> None:
    """Compare training alone, together, clustered, personalised.

    ADVICE: a folder to continue.
    """
    first, rest = Path(words[0]) if words else None, (words or [])[1:]
    again = first if first and (first / ADVICE).is_file() else None
    keys, federation = given([str(again / ADVICE), *rest] if again else words or [])
    if again and any(not word.startswith("federation.") for word in rest):
        raise ConfigError(
            f"{again.name} continues as it was asked for; only federation.* can be named, got {rest}"
        )
    federation = federated(keys, federation)
    arms.check(keys)
    for line in arms.early_warnings(federation):
        typer.echo(line)
    parent = Path(str(keys.get("run.dir", "runs"))).expanduser().resolve()
    folder = again or arms.open_folder(
        {**keys, **{f"federation.{k}": v for k, v in federation.items()}}, parent
    )
    raise SystemExit(
        arms.run_arms(folder.resolve(), keys, lambda arm: launch(Request(arm, federation), verbose=verbose))
    )


@app.command()
def resume(
    folder: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or its name in runs/.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v")] = False,
) -> None:
    """Continue a run from its last committed round."""
    path = run_folder(folder)
    then, _ = read_config(path)
    keys, federation = given(words or [])
    here = {"run.resume": str(path.resolve()), "run.dir": str(path.resolve().parent)}
    asked = Request({**then, **keys, **here}, recorded_federation(path, then, federation))
    RunFolder.reopen(parse(asked.keys))
    raise SystemExit(launch(asked, verbose=verbose))


@app.command()
def site(
    file: Annotated[Path, typer.Argument(metavar="SITE.toml")],
    words: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]")] = None,
) -> None:
    """Serve a site: hold its rows and the base model between runs.

    The SuperNode beside it names its address.
    """
    from cli.site.service import main as serve  # the model libraries, which no other command waits for
    from cli.site.site_file import SiteFile

    serve(SiteFile.read(file, words or []))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def node(context: typer.Context) -> None:
    """Run flower-supernode with these arguments, waiting less.

    Most of its waiting between messages is left out (docs/sites.md).
    """
    for note in cleaned(os.environ)[1]:
        typer.echo(f"accord: {note}", err=True)
    program = str(ROOT / "cli" / "site" / "node.py")
    os.execve(sys.executable, [sys.executable, program, *context.args], {**environment(), **QUIET})


@app.command()
def provision(
    federation: Annotated[Path | None, typer.Argument(metavar="FEDERATION.toml")] = None,
    out: Annotated[Path, typer.Option(help="Where the kits are made, or kept up.")] = Path("kits"),
    renew: Annotated[bool, typer.Option("--renew", help="A new certificate for the server.")] = False,
    site_key: Annotated[
        Path | None, typer.Option(metavar="KIT", help="At a site: make its own key in its kit.")
    ] = None,
) -> None:
    """Make certificates, keys, and a kit for server and sites."""
    if (federation is None) == (site_key is None):
        raise ConfigError("expected FEDERATION.toml on the server's side, or --site-key KIT at a site")
    lines = kits.provision(read_federation(federation), out, renew=renew) if federation else []
    for line in [kits.make_site_key(site_key)] if site_key else lines:
        typer.echo(line)


@app.command()
def start(
    kit: Annotated[Path, typer.Argument(metavar="KIT")],
    words: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]")] = None,
) -> None:
    """Start what a kit is for: the SuperLink, or a site's SuperNode.

    KEY=VALUE goes over the site.toml of the kit.
    """
    if read_kit(kit)["kind"] == "server":
        if words:
            raise ConfigError(f"{kit} is the kit of a server, which takes no words; got {words[0]!r}")
        serve.start(kit)
    then = "import sys; sys.path[0] = sys.argv[1]; from cli.site.supervise import main; main(*sys.argv[2:])"
    os.execv(  # in place of what is loaded here
        sys.executable, [sys.executable, "-c", then, str(ROOT), str(kit), *(words or [])]
    )


@app.command()
def register(kit: Annotated[Path, typer.Argument(metavar="KIT")]) -> None:
    """On the server: let the sites of its kit in, former ones out."""
    for line in serve.register(kit):
        typer.echo(line)


@app.command()
def doctor(
    place: Annotated[Path | None, typer.Argument(metavar="[KIT | SITE.toml]")] = None,
) -> None:
    """Check this machine, and a kit or a site's file.

    Says what is wrong and what to do; exits with 1 if a run would fail.
    """
    from cli.machine import checks
    from cli.provision import server_checks
    from cli.site import site_checks

    found = [*checks.versions(), *checks.machine()]
    if place is None:
        found.append(checks.disk("runs", Path("runs").resolve()))
    elif place.is_dir() and read_kit(place)["kind"] == "server":
        found += server_checks.checks(place)
    else:
        found += site_checks.checks(place)
    for one in found:
        typer.echo(one.line())
    raise SystemExit(1 if any(one.verdict == "no" for one in found) else 0)


@app.command()
def status(
    folder: Annotated[str, typer.Argument(metavar="[RUN]", help="A run folder; the newest in runs/.")] = "",
    kit: Annotated[
        Path | None, typer.Option(help="The server's kit: whether its sites are connected.")
    ] = None,
    port: Annotated[int, typer.Option(help="Serve Prometheus metrics of the run on this loopback port.")] = 0,
) -> None:
    """Tell how a run is; with a kit, which sites are connected.

    Its round, and who is missing since when.
    """
    from cli import status as now

    for name, word, since in serve.sites(kit) if kit else ():
        typer.echo(f"site     {name}: {word}{f' since {since}' if since else ''}")
    newest = sorted(p.parent for p in Path("runs").glob("*/config.toml"))
    if not folder and not newest:
        if kit:
            return
        raise ConfigError("no run in runs/: name a run folder, or start one with `accord run`")
    path = run_folder(folder) if folder else newest[-1]
    if port:
        now.serve(path, port)
    for line in now.lines(read_run(path)):
        typer.echo(line)


@app.command("list")
def list_plugins() -> None:
    """Print every plugin and every key with its default."""
    for package, section in SECTION_OF.items():
        typer.echo(f"{package.replace('.', '/')}/")
        for name in names(package):
            cls = plugin(package, name)
            about = " ".join((sys.modules[cls.__module__].__doc__ or "").split("\n\n")[0].split())
            typer.echo(f"  {name:<14}{re.split(r'(?<=[.])[ ]', about)[0]}")
            for key, default in knobs(cls).items():
                typer.echo(f"    {section}.{key} = {default!r}")
    typer.echo("keys")
    for key, default in defaults().items():
        typer.echo(f"  {key} = {default!r}")


def main() -> None:
    """Entry of the console script; a user's mistake is one line and exit code 2."""
    prepare_process()
    try:
        app()
    except AccordError as error:
        typer.echo(f"accord: {error}", err=True)
        raise SystemExit(2) from None
    except OSError as error:  # a disk that is full or refuses, where nobody had a better word
        typer.echo(f"accord: {error.filename or 'cannot write'}: {error.strerror or error}", err=True)
        raise SystemExit(1) from None
    except Exception as error:  # a fault of Accord's; its text, unlike the way to it, may quote a row
        way = "".join(traceback.format_tb(error.__traceback__))
        typer.echo(
            f"accord: unexpected {type(error).__name__}; please report it with these lines:\n{way}", err=True
        )
        raise SystemExit(1) from None
