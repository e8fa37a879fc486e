"""Commands for the machines of a deployment: kits, the server, the sites and their processes."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.machine.environment import cleaned
from cli.machine.processes import ROOT, environment, read_kit
from cli.provision import kits, serve
from cli.provision.federation import read_federation
from cli.run.launch import QUIET
from core.errors import ConfigError

# The docstrings describe the arguments: click 8.5 drops the help that typer gives to arguments.
Kit = Annotated[Path, typer.Argument(metavar="KIT", hidden=True)]
SiteKeys = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]", hidden=True)]


def site(
    file: Annotated[Path, typer.Argument(metavar="SITE.toml", hidden=True)],
    arguments: SiteKeys = None,
) -> None:
    """Serve a site: hold its rows and the base model between runs.

    SITE.toml has the settings of the site; KEY=VALUE overrides one of them. The SuperNode on the same machine reaches
    the site at the address in its node config.
    """
    from cli.site.service import main as serve  # imports the model libraries, which are slow to load
    from cli.site.site_file import SiteFile

    serve(SiteFile.read(file, arguments or []))


def node(context: typer.Context) -> None:
    """Run flower-supernode with these arguments and shorter waits.

    Flower's waits between messages are shortened (docs/sites.md).
    """
    for note in cleaned(os.environ)[1]:
        typer.echo(f"accord: {note}", err=True)
    program = str(ROOT / "cli" / "site" / "node.py")
    os.execve(sys.executable, [sys.executable, program, *context.args], {**environment(), **QUIET})


def provision(
    federation: Annotated[Path | None, typer.Argument(metavar="FEDERATION.toml", hidden=True)] = None,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="The folder of the kits, which is made or updated.")
    ] = Path("kits"),
    renew: Annotated[bool, typer.Option("--renew", help="Make a new certificate for the server.")] = False,
    site_key: Annotated[
        Path | None, typer.Option(metavar="KIT", help="At a site: make its own key in its kit.")
    ] = None,
) -> None:
    """Make certificates, keys, and the kits of server and sites.

    FEDERATION.toml lists the sites (docs/deployment.md); it stays on the server.
    """
    if (federation is None) == (site_key is None):
        raise ConfigError(
            "expected FEDERATION.toml (on the server) or --site-key KIT (at a site), and not both"
        )
    lines = kits.provision(read_federation(federation), out, renew=renew) if federation else []
    for line in [kits.make_site_key(site_key)] if site_key else lines:
        typer.echo(line)


def start(
    kit: Kit,
    arguments: SiteKeys = None,
) -> None:
    """Start a kit's process: the SuperLink, or a site's SuperNode.

    KIT is a folder that `accord provision` made. KEY=VALUE overrides a key of the kit's site.toml.
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


def register(kit: Kit) -> None:
    """Register this kit's sites with the server; remove former ones.

    KIT is the server's kit, which `accord provision` made.
    """
    for line in serve.register(kit):
        typer.echo(line)


def doctor(
    place: Annotated[Path | None, typer.Argument(metavar="[KIT | SITE.toml]", hidden=True)] = None,
) -> None:
    """Check this machine, and a kit or a site's file.

    KIT is a folder that `accord provision` made, SITE.toml the settings of a site. Prints what is wrong and how to fix
    it, and exits with 1 if a run would fail.
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
