"""Commands for runs: start, check, compare, resume and inspect them."""

from pathlib import Path
from typing import Annotated

import typer

from cli.advice import arms
from cli.provision import serve
from cli.run.launch import launch
from cli.run.request import Request, federated, parse_arguments, recorded_federation, request, run_folder
from core.config import parse
from core.errors import ConfigError
from server_app.report.reading import ADVICE, read_config, read_run
from server_app.run_folder import RunFolder

# The docstrings describe the arguments: click 8.5 drops the help that typer gives to arguments.
Settings = Annotated[
    list[str] | None, typer.Argument(metavar="[PRESET.toml ...] [KEY=VALUE ...]", hidden=True)
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show Flower's own log lines as well.")]


def run(
    arguments: Settings = None,
    verbose: Verbose = False,
) -> None:
    """Run a federation, as a simulation here or on a deployment.

    PRESET.toml is a preset or a file of your own; a later one overrides an earlier one. KEY=VALUE sets one key of
    `accord list` and overrides every file. federation.superlink=NAME selects a deployment: a SuperLink in the
    config.toml of FLWR_HOME.
    """
    run_request = request(arguments or [])
    for line in run_request.notes:
        typer.echo(line)
    raise SystemExit(launch(run_request, verbose=verbose))


def check(
    arguments: Settings = None,
    show_rows: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            show_default=False,
            help="Print the first N rows as the model will see them. Rows are private text.",
        ),
    ] = 0,
    warnings_only: Annotated[bool, typer.Option("--brief", hidden=True)] = False,
) -> None:
    """Check a run before it starts: rows, lengths, model, memory.

    Takes the arguments of `accord run`. If the run could not start, it prints the reason on one line and exits with 2.
    """
    from cli.check import survey  # imports the model libraries, which are slow to load
    from cli.check.rehearsal import rehearse

    run_request = request(arguments or [])
    for line in rehearse(run_request, survey, show_rows=show_rows, warnings_only=warnings_only):
        typer.echo(line)


def demo() -> None:
    """Align the built-in toy model on eight simulated clients.

    Runs federated DPO with the default of every key.
    """
    raise SystemExit(launch(request([]), verbose=False))


def advise(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[PRESET.toml ... | ADVICE] [KEY=VALUE ...]", hidden=True)
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Compare local, federated, clustered and personalised training.

    PRESET.toml and KEY=VALUE are those of `accord run`. ADVICE is the folder of an earlier comparison, which is
    continued.
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


def resume(
    folder: Annotated[str, typer.Argument(metavar="RUN", hidden=True)],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]", hidden=True)] = None,
    verbose: Verbose = False,
) -> None:
    """Continue a run from its last completed round.

    RUN is a run folder, or the name of one in runs/. KEY=VALUE sets a key that may differ, such as
    run.num-server-rounds. A deployment needs its federation.superlink=NAME again.
    """
    path = run_folder(folder)
    recorded, _ = read_config(path)
    keys, federation = parse_arguments(arguments or [])
    location = {"run.resume": str(path.resolve()), "run.dir": str(path.resolve().parent)}
    run_request = Request({**recorded, **keys, **location}, recorded_federation(path, recorded, federation))
    RunFolder.reopen(parse(run_request.keys))
    raise SystemExit(launch(run_request, verbose=verbose))


def status(
    folder: Annotated[str, typer.Argument(metavar="[RUN]", hidden=True)] = "",
    kit: Annotated[
        Path | None,
        typer.Option(metavar="KIT", help="The server's kit: show whether its sites are connected."),
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            metavar="PORT",
            show_default=False,
            help="Serve the run's Prometheus metrics on this port of the loopback interface.",
        ),
    ] = 0,
) -> None:
    """Show the state of a run; with a kit, which sites are connected.

    RUN is a run folder, or the name of one in runs/; by default it is the newest. The state includes the round, and
    the missing clients with the last round of each.
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
