"""Run a federation with `flwr run`: a SuperLink that is stopped again, quiet output, an exit code to trust."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType

import tomli_w
import typer

from cli.machine.environment import RAY_BYTES, ROOM, cleaned, private_ray, short_folder
from cli.machine.processes import BIN, ROOT, check_home, environment
from cli.run.check_process import checking
from cli.run.client_packing import Packing, base_bytes, check_this_device, pack, this_machine
from cli.run.ray_failure import simulation_failure
from cli.run.request import Request
from cli.run.stream import Stream
from cli.run.superlink import superlink
from core.config import parse
from core.errors import ConfigError
from core.types import Scalar
from server_app.report.reading import is_advice_run
from server_app.run_folder import RunFolder, is_held

REFUSED = 2  # exit code of a check
SMALL = 500e6  # bytes of a base that may be in memory once more while a run starts
FRESH_S = 2.0  # a run folder of this age may be another run's that is about to hold it
QUIET = {
    "PYTHONWARNINGS": "ignore::DeprecationWarning,ignore::FutureWarning",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
OWN_RAY = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_worker_prestart": "0",  # actors bring a runtime environment, so waiting workers are never used
    "RAY_prestart_worker_first_driver": "0",
}


def launch(asked: Request, *, verbose: bool) -> int:
    """Check, run and wait. The exit code: 0 finished, 1 failed, 2 refused before it began, 128 + N after signal N."""
    check_home()
    run_dir = _place_for_runs(asked)
    known = set(run_dir.iterdir())
    scratch = _scratch()
    own_link = not asked.federation["superlink"]
    stream = Stream(scratch / "stream.log", asked_of_others=not own_link, verbose=verbose)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_ending_well(hang_up=own_link))
            code = _run(asked, {**asked.keys, "run.dir": str(run_dir)}, scratch, stream, stack)
    except KeyboardInterrupt as asked_to:
        code = asked_to.args[0] if asked_to.args else 130
    if code in (0, REFUSED):
        shutil.rmtree(scratch, ignore_errors=True)
    if code == 0:
        return 0
    clear_away(set(run_dir.iterdir()) - known)
    if code != REFUSED:
        tell_how_it_ended(asked, code, stream)
    return code


def _run(
    asked: Request, keys: Mapping[str, Scalar], scratch: Path, stream: Stream, stack: contextlib.ExitStack
) -> int:
    """The exit code of a run; what it starts ends with `stack`."""
    config, machine = parse(keys), this_machine()
    if not asked.federation["superlink"]:
        check_this_device(config.model, machine)
    env, notes = _environment(scratch)
    check = stack.enter_context(checking(asked, scratch, env))
    env |= QUIET
    name, simulation = str(asked.federation["superlink"]), list[str]()
    if not name:
        env, dropped = private_ray(env)
        env |= OWN_RAY | {"FLWR_HOME": str(scratch / "flwr"), "RAY_TMPDIR": str(scratch)}
        packing, told = pack(config, asked.federation, machine)
        simulation = ["--federation-config", _simulation(asked.federation, packing)]
        start = "start    SuperLink, Ray, clients; the plan follows when all have said what they hold"
        typer.echo("\n".join([*told, *(f"note     {note}" for note in (*notes, *dropped)), start]))
        if not packing.share:  # else Ray must first say which GPU is whose
            env["RAY_preload_python_modules"] = "client_app.site"  # now, not at the first message
        name = stack.enter_context(superlink(scratch, env, check.has_refused))
    # a run of a deployment begins after its check, and so does one whose model is not to be in memory once more
    if (not simulation or base_bytes(config) > SMALL or check.has_refused()) and (code := check.wait()):
        return code
    file = scratch / "run.toml"
    file.write_text(tomli_w.dumps(dict(keys)), encoding="utf-8")
    command = [str(BIN / "flwr"), "run", str(stage(scratch / "app")), name, "--stream"]
    return stream.follow([*command, "--run-config", str(file), *simulation], env, name, check.wait)


def _place_for_runs(asked: Request) -> Path:
    run_dir = Path(str(asked.keys.get("run.dir", "runs"))).expanduser().resolve()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        next(run_dir.iterdir(), None)
    except OSError as error:
        raise ConfigError(f"run.dir = {str(run_dir)!r} cannot hold runs: {error.strerror}") from error
    if not os.access(run_dir, os.W_OK | os.X_OK):
        raise ConfigError(
            f"run.dir = {str(run_dir)!r} cannot hold runs: it cannot be written by uid {os.getuid()}"
        )
    return run_dir


def _scratch() -> Path:
    """A private folder for what a run needs while it lasts, with a path short enough for Ray's sockets."""
    try:
        return short_folder("accord-", ROOM, RAY_BYTES)
    except OSError as error:
        raise ConfigError(str(error)) from error


def _environment(scratch: Path) -> tuple[dict[str, str], list[str]]:
    """Of every process of a run, and a line for each variable that is left out."""
    _, notes = cleaned(os.environ)
    env = environment(TMPDIR=str(scratch.parent), **_commit())
    home = Path(os.path.expanduser("~"))
    if not os.access(home, os.W_OK):
        env.setdefault("MPLCONFIGDIR", str(scratch / "matplotlib"))
    return env, notes


@contextlib.contextmanager
def _ending_well(*, hang_up: bool) -> Iterator[None]:
    """Inside, SIGTERM, and the terminal's end if `hang_up`, end a run as Ctrl-C does: their default would leave the
    SuperLink behind. A signal that is ignored (nohup) stays ignored.
    """
    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hang_up else [])]
    before = {n: signal.getsignal(n) for n in numbers}
    for number in numbers:
        if before[number] != signal.SIG_IGN:
            signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def clear_away(folders: Iterable[Path], fresh_s: float = FRESH_S) -> None:
    """Delete the run folders in which nothing was begun and nobody is at work.

    A folder younger than `fresh_s` may be another run's that is about to hold it, and is looked at when it is older.
    """
    unbegun = [f for f in folders if (f / "config.toml").is_file() and RunFolder(f).has_no_round()]
    if unbegun:
        youngest = max(folder.stat().st_ctime for folder in unbegun)
        time.sleep(min(fresh_s, max(0.0, fresh_s - (time.time() - youngest))))
    for folder in unbegun:
        if folder.is_dir() and not is_held(folder):
            RunFolder(folder).discard_without_round()


def tell_how_it_ended(asked: Request, code: int, stream: Stream) -> None:
    """Say on stderr why a run stopped, and how to continue what it has committed."""
    word = "stopped" if code > 128 else "the run failed"
    if code == 1 and not stream.told:
        word = simulation_failure(stream.log) or word
    typer.echo(f"accord: {word}; Flower's log: {stream.log}", err=True)
    folder = Path(str(asked.keys.get("run.resume") or stream.folder or ""))
    if folder.name and (folder / "checkpoints").is_dir() and not is_advice_run(folder):
        link = asked.federation["superlink"]
        again = f" federation.superlink={link}" if link else ""
        typer.echo(
            f"accord: nothing committed is lost; continue with: accord resume {shlex.quote(str(folder))}{again}",
            err=True,
        )


def _end(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt(128 + number)


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


def _commit() -> dict[str, str]:
    """The commit of this checkout, for the manifest; the bundle has no history of its own."""
    if os.environ.get("ACCORD_COMMIT"):
        return {}
    git = (
        shutil.which("git") if (ROOT / ".git").exists() else None
    )  # else the commit is that of a project around it
    done = (
        subprocess.run([git, "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
        if git
        else None
    )
    return {"ACCORD_COMMIT": done.stdout.strip()} if done and done.returncode == 0 else {}
