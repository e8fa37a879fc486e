"""The command line: run, resume and look at federations. A thin layer over `flwr run`.

`flwr run . --stream` does the same work without it; this adds presets merged with overrides, a SuperLink
that is stopped again, quiet output, and an exit code that tells whether the run succeeded.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import psutil
import tomli_w
import typer

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # the console script starts elsewhere, and Flower wants no installed packages

from core.config import checked, defaults, flatten, parse, without_effect  # noqa: E402 - needs the line above
from core.errors import AccordError, ConfigError  # noqa: E402
from core.plugins import knobs, names, plugin  # noqa: E402
from core.processes import BIN, FLOWER, read_kit  # noqa: E402
from core.types import Scalar  # noqa: E402
from server_app.advice.arms import ASKED, check, open_folder, run_arms  # noqa: E402
from server_app.packing import Packing, pack, this_machine  # noqa: E402
from server_app.provision import kits, serve  # noqa: E402
from server_app.provision.federation import read_federation  # noqa: E402
from server_app.reading import read_run  # noqa: E402
from server_app.run_folder import RunFolder  # noqa: E402

HELP = "Federated preference alignment of language models on Flower."
app = typer.Typer(add_completion=False, no_args_is_help=True, help=HELP, rich_markup_mode=None)

START_S = 30.0
# Not knobs of the app: how many clients a simulation has and what each may use, or which deployment to ask.
FEDERATION: dict[str, Scalar] = {"num-supernodes": 8, "client-cpus": 1.0, "client-gpus": 0.0, "superlink": ""}
ANSI = re.compile(r"\x1b\[[0-9;]*m")
NOISE = re.compile(
    r"\s*(INFO|DEBUG|WARNING)\s*:|\((ClientAppActor|raylet|pid=)|Using SuperLink|Loading project"
    r"|Successfully (started|installed) "
)
SECTION_OF = {"tasks": "task", "strategies": "strategy", "tasks.data": "data", "evals": "eval"}
QUIET = {
    **FLOWER,
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_enable_worker_prestart": "0",  # actors bring a runtime environment, so waiting workers are never used
    "RAY_prestart_worker_first_driver": "0",
    "PYTHONWARNINGS": "ignore::DeprecationWarning,ignore::FutureWarning",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


@dataclass(frozen=True)
class Request:
    """What to run: the app's keys as overrides, and the federation's."""

    keys: dict[str, Scalar]
    federation: dict[str, Scalar]


@app.command()
def run(
    words: Annotated[list[str] | None, typer.Argument(metavar="[PRESET.toml ...] [KEY=VALUE ...]")] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show Flower's own log lines as well.")
    ] = False,
) -> None:
    """Run a federation: a simulation on this machine, or federation.superlink=NAME."""
    raise SystemExit(launch(request(words or []), verbose=verbose))


@app.command()
def demo() -> None:
    """Run the default: eight simulated clients align the embedded toy model with federated DPO."""
    raise SystemExit(launch(request([]), verbose=False))


@app.command()
def advise(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[PRESET.toml | ADVICE] [KEY=VALUE ...]")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v")] = False,
) -> None:
    """Compare training alone, together, in clusters and personalised on these clients; ADVICE: a folder to continue."""
    first, rest = Path(words[0]) if words else None, (words or [])[1:]
    again = first if first and (first / ASKED).is_file() else None
    keys, federation = given([str(again / ASKED), *rest] if again else words or [])
    if again and any(not word.startswith("federation.") for word in rest):
        raise ConfigError(
            f"{again.name} continues as it was asked for; only federation.* can be named, got {rest}"
        )
    federation = {**FEDERATION, **federation}
    if not federation["superlink"]:
        keys.setdefault("strategy.min-available-nodes", federation["num-supernodes"])
    check(keys)
    parent = Path(str(keys.get("run.dir", "runs"))).expanduser().resolve()
    folder = again or open_folder({**keys, **{f"federation.{k}": v for k, v in federation.items()}}, parent)
    raise SystemExit(
        run_arms(folder.resolve(), keys, lambda arm: launch(Request(arm, federation), verbose=verbose))
    )


@app.command()
def resume(
    folder: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or its name in runs/.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v")] = False,
) -> None:
    """Continue a run from its last committed round."""
    path = _run_folder(folder)
    then = flatten(tomllib.loads((path / "config.toml").read_text()))
    keys, federation = given(words or [])
    here = {"run.resume": str(path.resolve()), "run.dir": str(path.resolve().parent)}
    asked = Request({**then, **keys, **here}, {**_recorded_federation(path, then), **federation})
    RunFolder.reopen(parse(asked.keys))
    raise SystemExit(launch(asked, verbose=verbose))


@app.command()
def site(
    file: Annotated[Path, typer.Argument(metavar="SITE.toml")],
    words: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]")] = None,
) -> None:
    """Serve a site: the resident process that holds rows and base model; the SuperNode beside it names its address."""
    from client_app.service import main as serve  # the model libraries, which no other command waits for
    from client_app.site_file import SiteFile

    serve(SiteFile.read(file, words or []))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def node(context: typer.Context) -> None:
    """Run flower-supernode with these arguments, without most of its waiting between messages (docs/sites.md)."""
    program = str(ROOT / "client_app" / "node.py")
    os.execve(sys.executable, [sys.executable, program, *context.args], {**os.environ, **QUIET})


@app.command()
def provision(
    federation: Annotated[Path | None, typer.Argument(metavar="FEDERATION.toml")] = None,
    out: Annotated[Path, typer.Option(help="Where the kits are made, or kept up.")] = Path("kits"),
    renew: Annotated[bool, typer.Option("--renew", help="A new certificate for the server.")] = False,
    site_key: Annotated[
        Path | None, typer.Option(metavar="KIT", help="At a site: make its own key in its kit.")
    ] = None,
) -> None:
    """Make a federation's certificates and keys, a kit for its server and one for each site."""
    if (federation is None) == (site_key is None):
        raise ConfigError("expected FEDERATION.toml on the server's side, or --site-key KIT at a site")
    lines = kits.provision(read_federation(federation), out, renew=renew) if federation else []
    for line in [kits.make_site_key(site_key)] if site_key else lines:
        typer.echo(line)


@app.command()
def start(kit: Annotated[Path, typer.Argument(metavar="KIT")]) -> None:
    """Start what a kit is for: the SuperLink on the server, the SuperNode at a site."""
    if read_kit(kit)["kind"] == "server":
        serve.start(kit)
    then = "import sys; sys.path[0] = sys.argv[1]; from client_app.supervise import main; main(sys.argv[2])"
    os.execv(
        sys.executable, [sys.executable, "-c", then, str(ROOT), str(kit)]
    )  # in place of what is loaded here


@app.command()
def register(kit: Annotated[Path, typer.Argument(metavar="KIT")]) -> None:
    """On the server: let in the sites of its kit, and out those that are no longer in it."""
    for line in serve.register(kit):
        typer.echo(line)


@app.command()
def doctor(
    place: Annotated[Path | None, typer.Argument(metavar="[KIT | SITE.toml]")] = None,
) -> None:
    """Check this machine, and a kit or a site's file: what is wrong, what to do. Exits with 1 if a run would fail."""
    from client_app import doctor as site_doctor
    from core import checks
    from server_app.provision import doctor as server_doctor

    found = [*checks.versions(), *checks.machine()]
    if place is None:
        found.append(checks.disk("runs", Path("runs").resolve()))
    elif place.is_dir() and read_kit(place)["kind"] == "server":
        found += server_doctor.checks(place)
    else:
        found += site_doctor.checks(place)
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
    """Tell how a run is: its round, who is missing since when; with a kit, which sites are connected."""
    from server_app import status as now

    for name, word, since in serve.sites(kit) if kit else ():
        typer.echo(f"site     {name}: {word}{f' since {since}' if since else ''}")
    newest = sorted(p.parent for p in Path("runs").glob("*/config.toml"))
    if not folder and not newest:
        if kit:
            return
        raise ConfigError("no run in runs/: name a run folder, or start one with `accord run`")
    path = _run_folder(folder) if folder else newest[-1]
    if port:
        now.serve(path, port)
    for line in now.lines(read_run(path)):
        typer.echo(line)


@app.command("list")
def list_plugins() -> None:
    """Print every plugin with its keys and defaults, then the shared keys."""
    for package, section in SECTION_OF.items():
        typer.echo(f"{package.replace('.', '/')}/")
        for name in names(package):
            cls = plugin(package, name)
            typer.echo(f"  {name:<14}{(sys.modules[cls.__module__].__doc__ or '').splitlines()[0]}")
            for key, default in knobs(cls).items():
                typer.echo(f"    {section}.{key} = {default!r}")
    typer.echo("keys")
    for key, default in defaults().items():
        typer.echo(f"  {key} = {default!r}")


def main() -> None:
    """Entry of the console script; a user's mistake is one line and exit code 2."""
    try:
        app()
    except AccordError as error:
        typer.echo(f"accord: {error}", err=True)
        raise SystemExit(2) from None


# --- what was asked -----------------------------------------------------------------


def request(words: list[str]) -> Request:
    """Preset files, a later one over an earlier one, merged with key=value words; every key and value is checked."""
    keys, chosen = given(words)
    federation = {**FEDERATION, **chosen}
    if not federation["superlink"]:
        keys.setdefault("strategy.min-available-nodes", federation["num-supernodes"])
    parse(keys)
    return Request(keys, federation)


def given(words: list[str]) -> tuple[dict[str, Scalar], dict[str, Scalar]]:
    """The keys of the app and those of the federation that the words name, checked one by one.

    A word that chooses another plugin than the preset drops the preset's keys that were for that one alone.
    """
    keys: dict[str, Scalar] = {}
    federation: dict[str, Scalar] = {}
    preset: set[str] = set()  # keys that it alone has set
    for source, found in _sources(words):
        for key, value in found.items():
            if key.startswith("federation."):
                federation[key.removeprefix("federation.")] = _federation_value(key, value)
                continue
            try:
                keys[key] = checked(key, value)
            except ConfigError as error:
                raise ConfigError(f"{error} ({source})") from error
        if source.endswith(".toml"):
            preset = set(keys)
        else:
            preset -= found.keys()
            lost = without_effect(found, preset)
            preset -= lost
            keys = {key: value for key, value in keys.items() if key not in lost}
    return keys, federation


def _sources(words: list[str]) -> Iterator[tuple[str, Mapping[str, Scalar]]]:
    for i, word in enumerate(words):
        if "=" not in word:
            if not word.endswith(".toml") or any("=" in earlier for earlier in words[:i]):
                raise ConfigError(f"expected preset files first and then key=value words, got {word!r}")
            yield word, _preset(Path(word))
        else:
            key, text = word.split("=", 1)
            yield (
                "command line",
                {key: _value(text, defaults().get(key, FEDERATION.get(key.split(".", 1)[-1])))},
            )


def _preset(path: Path) -> dict[str, Scalar]:
    for candidate in (path, ROOT / "presets" / path):
        if candidate.is_file():
            try:
                return flatten(tomllib.loads(candidate.read_text()))
            except tomllib.TOMLDecodeError as error:
                raise ConfigError(f"{candidate} is not TOML: {error}") from error
    have = ", ".join(sorted(p.name for p in (ROOT / "presets").glob("*.toml")))
    raise ConfigError(f"no preset {path}; have in presets/: {have}")


def _value(text: str, like: Scalar | None) -> Scalar:
    """A word as TOML reads it; anything is a string where a string is meant."""
    if isinstance(like, str):
        return text
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _federation_value(key: str, value: Scalar) -> Scalar:
    short = key.removeprefix("federation.")
    if short not in FEDERATION:
        raise ConfigError(f"unknown key {key!r}; have: {', '.join('federation.' + k for k in FEDERATION)}")
    want = type(FEDERATION[short])
    if want is float and type(value) is int:
        value = float(value)
    if type(value) is not want:
        raise ConfigError(f"{key} must be {want.__name__}, got {value!r}")
    if short == "num-supernodes" and int(value) < 1:
        raise ConfigError(f"{key} must be at least 1, got {value!r}")
    return value


def _run_folder(folder: str) -> Path:
    for path in (Path(folder), Path("runs") / folder):
        if (path / "config.toml").is_file():
            return path
    raise ConfigError(f"{folder!r} is no run folder: expected a folder with a config.toml, here or in runs/")


def _recorded_federation(path: Path, then: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """A simulation with as many clients as the run had; a deployment is named again by the user."""
    manifest = json.loads((path / "manifest.json").read_text()) if (path / "manifest.json").is_file() else {}
    clients = len(manifest.get("clients", {})) or int(then["strategy.min-available-nodes"])
    return {**FEDERATION, "num-supernodes": clients}


# --- running it ---------------------------------------------------------------------


def launch(asked: Request, *, verbose: bool) -> int:
    """Run and wait; 0 when the run finished, 1 when it failed, 130 after Ctrl-C."""
    run_dir = Path(str(asked.keys.get("run.dir", "runs"))).expanduser().resolve()
    run_dir.mkdir(parents=True, exist_ok=True)
    known = set(run_dir.iterdir())
    scratch = Path(tempfile.mkdtemp(prefix="accord-"))
    config = scratch / "run.toml"
    config.write_text(tomli_w.dumps({**asked.keys, "run.dir": str(run_dir)}))
    name, simulation = str(asked.federation["superlink"]), list[str]()
    env = {**os.environ, **QUIET, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **_commit()}
    try:
        with contextlib.ExitStack() as stack:
            if not name:
                env["FLWR_HOME"] = str(scratch / "flwr")
                packing, told = pack(parse(asked.keys), asked.federation, this_machine())
                simulation = ["--federation-config", _simulation(asked.federation, packing)]
                typer.echo("\n".join(told))
                if not packing.share:  # else Ray must first say which GPU is whose
                    env["RAY_preload_python_modules"] = "client_app.site"  # now, not at the first message
                name = stack.enter_context(_superlink(scratch, env))
            sources = str(stage(scratch / "app"))
            command = [str(BIN / "flwr"), "run", sources, name, "--stream", "--run-config", str(config)]
            code = _stream([*command, *simulation], env, name, scratch / "stream.log", verbose=verbose)
    except KeyboardInterrupt:
        code = 130
    folder = Path(str(asked.keys.get("run.resume") or "")) if asked.keys.get("run.resume") else None
    folder = folder or next(iter(sorted(set(run_dir.iterdir()) - known)), None)
    if code == 0:
        shutil.rmtree(scratch, ignore_errors=True)
        return 0
    word = "stopped" if code == 130 else "the run failed"
    typer.echo(f"accord: {word}; Flower's log: {scratch / 'stream.log'}", err=True)
    if folder and (folder / "checkpoints").is_dir():
        again = f" federation.superlink={name}" if asked.federation["superlink"] else ""
        typer.echo(
            f"accord: nothing committed is lost; continue with: accord resume {folder}{again}", err=True
        )
    return code


def stage(folder: Path) -> Path:
    """The sources of the bundle in a folder of their own: Flower looks at every file below the one it is given,
    and below a checkout these are the tens of thousands of a virtual environment.
    """
    include = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["fab-include"]
    for pattern in ("pyproject.toml", ".gitignore", *include):
        for path in ROOT.glob(pattern):
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return folder


def _simulation(federation: Mapping[str, Scalar], packing: Packing) -> str:
    cpus = int(float(federation["client-cpus"]))
    return (
        f"num-supernodes={federation['num-supernodes']} client-resources-num-cpus={cpus} "
        f"client-resources-num-gpus={packing.share} init-args-num-cpus={packing.at_once * cpus}"
    )


@contextlib.contextmanager
def _superlink(scratch: Path, env: Mapping[str, str]) -> Iterator[str]:
    """A SuperLink of our own on a free loopback port, stopped with everything it started."""
    home = Path(env["FLWR_HOME"])
    home.mkdir()
    port = _free_port()
    (home / "config.toml").write_text(
        tomli_w.dumps(
            {"superlink": {"default": "accord", "accord": {"address": f"127.0.0.1:{port}", "insecure": True}}}
        )
    )
    command = [
        str(BIN / "flower-superlink"),
        "--insecure",
        "--simulation",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with (scratch / "superlink.log").open("wb") as log:
        process = subprocess.Popen(command, env=dict(env), stdout=log, stderr=log, start_new_session=True)
    patience_s = 5.0
    try:
        _wait_healthy(process, port, scratch / "superlink.log")
        yield "accord"
        patience_s = 0.5  # the run is over: Ray has ended, and the SuperLink keeps nothing
    finally:
        _stop(process, patience_s)


def _wait_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
            return
        time.sleep(0.1)
    raise ConfigError(
        f"the SuperLink did not come up on 127.0.0.1:{port} within {START_S:.0f} s; its log: {log}"
    )


def _stop(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """End a process and all its descendants: politely, then for good. A second Ctrl-C must not stop this."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.terminate()
        _, alive = psutil.wait_procs(family, timeout=patience_s)
        for member in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()
    signal.signal(signal.SIGINT, before)


def _stream(command: list[str], env: Mapping[str, str], connection: str, raw: Path, *, verbose: bool) -> int:
    """Show the run's own lines as they come, keep all of them in `raw`, and ask how it ended."""
    run_id, planned, told = "", False, False
    with raw.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            env=dict(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                log.write(line)
                log.flush()
                run_id = found[1] if (found := re.search(r"Successfully started run (\d+)", line)) else run_id
                if verbose or not (told or NOISE.match(ANSI.sub("", line)) or not (planned or line.strip())):
                    typer.echo(line, nl=False)
                planned = planned or line.startswith("plan ")  # from here on, blank lines are ours
                told = told or line.startswith("accord: ")  # after the reason, Flower prints a traceback
            process.wait()
        finally:
            process.kill()
    if not run_id:
        return 1
    return 0 if _status(run_id, connection, env) == "finished:completed" else 1


def _status(run_id: str, connection: str, env: Mapping[str, str]) -> str:
    command = [str(BIN / "flwr"), "list", connection, "--run-id", run_id, "--format", "json"]
    done = subprocess.run(command, env=dict(env), capture_output=True, text=True, check=False)
    try:
        return str(json.loads(done.stdout)["runs"][0]["status"])
    except (ValueError, KeyError, IndexError):
        return f"unknown: {done.stdout or done.stderr}"


def _commit() -> dict[str, str]:
    """The commit of this checkout, for the manifest; the bundle has no history of its own."""
    if os.environ.get("ACCORD_COMMIT"):
        return {}
    git = shutil.which("git")
    done = (
        subprocess.run([git, "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
        if git
        else None
    )
    return {"ACCORD_COMMIT": done.stdout.strip()} if done and done.returncode == 0 else {}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
