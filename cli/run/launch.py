"""Run a federation with `flwr run`: start and stop its SuperLink, filter its output, report its result as exit code."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

import tomli_w
import typer

from cli.machine.environment import RAY_BYTES, ROOM, cleaned, private_ray, short_folder
from cli.machine.processes import BIN, ROOT, check_home, environment
from cli.machine.signals import raise_on_signals
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

REFUSED = 2  # exit code of a check that stops the run
SMALL = 500e6  # bytes of a base model of which one more copy may be in memory while a run starts
FRESH_S = 2.0  # a run folder younger than this may belong to another run that has not locked it yet
QUIET = {
    "PYTHONWARNINGS": "ignore::DeprecationWarning,ignore::FutureWarning",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
OWN_RAY = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_worker_prestart": "0",  # actors bring a runtime environment, so prestarted workers are never used
    "RAY_prestart_worker_first_driver": "0",
}


def launch(request: Request, *, verbose: bool) -> int:
    """Check a run, start it and wait for its end.

    Returns:
        The exit code: 0 finished, 1 failed, 2 refused before it started, 128 + N after signal N.
    """
    check_home()
    run_dir = _place_for_runs(request)
    earlier = set(run_dir.iterdir())
    scratch = _scratch()
    is_simulation = not request.federation["superlink"]
    stream = Stream(scratch / "stream.log", is_deployment=not is_simulation, verbose=verbose)
    try:
        with contextlib.ExitStack() as stack:
            # their default action would leave the SuperLink running; the SuperLink of a deployment outlives a terminal
            numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if is_simulation else [])]
            stack.enter_context(raise_on_signals(numbers, lambda number: KeyboardInterrupt(128 + number)))
            code = _run(request, {**request.keys, "run.dir": str(run_dir)}, scratch, stream, stack)
    except KeyboardInterrupt as interrupt:
        code = interrupt.args[0] if interrupt.args else 130
    if code in (0, REFUSED):
        shutil.rmtree(scratch, ignore_errors=True)
    if code == 0:
        return 0
    remove_unbegun(set(run_dir.iterdir()) - earlier)
    if code != REFUSED:
        report_failure(request, code, stream)
    return code


def _run(
    request: Request, keys: Mapping[str, Scalar], scratch: Path, stream: Stream, stack: contextlib.ExitStack
) -> int:
    """Run, and return the exit code; the processes that it starts end when `stack` is closed."""
    config, machine = parse(keys), this_machine()
    if not request.federation["superlink"]:
        check_this_device(config.model, machine)
    env, notes = _environment(scratch)
    check = stack.enter_context(checking(request, scratch, env))
    env |= QUIET
    name, simulation = str(request.federation["superlink"]), list[str]()
    if not name:
        env, dropped = private_ray(env)
        env |= OWN_RAY | {"FLWR_HOME": str(scratch / "flwr"), "RAY_TMPDIR": str(scratch)}
        packing, explanation = pack(config, request.federation, machine)
        simulation = ["--federation-config", _simulation(request.federation, packing)]
        start = "start    SuperLink, Ray, clients; the plan follows when every client has reported its rows"
        typer.echo("\n".join([*explanation, *(f"note     {note}" for note in (*notes, *dropped)), start]))
        if not packing.share:  # with GPUs, torch must not be imported before Ray has assigned them
            env["RAY_preload_python_modules"] = "client_app.site"  # import it now, not at the first message
        name = stack.enter_context(superlink(scratch, env, check.has_refused))
    # wait for the check before the run of a deployment, and before one whose model is too large for a second copy
    if (not simulation or base_bytes(config) > SMALL or check.has_refused()) and (code := check.wait()):
        return code
    file = scratch / "run.toml"
    file.write_text(tomli_w.dumps(dict(keys)), encoding="utf-8")
    command = [str(BIN / "flwr"), "run", str(stage(scratch / "app")), name, "--stream"]
    return stream.follow([*command, "--run-config", str(file), *simulation], env, name, check.wait)


def _place_for_runs(request: Request) -> Path:
    """The folder run.dir, which is made if it is missing. Raises ConfigError if it cannot be written."""
    run_dir = Path(str(request.keys.get("run.dir", "runs"))).expanduser().resolve()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        next(run_dir.iterdir(), None)
    except OSError as error:
        raise ConfigError(f"run.dir = {str(run_dir)!r} cannot hold runs: {error.strerror}") from error
    if not os.access(run_dir, os.W_OK | os.X_OK):
        raise ConfigError(
            f"run.dir = {str(run_dir)!r} cannot hold runs: uid {os.getuid()} cannot write to it"
        )
    return run_dir


def _scratch() -> Path:
    """A private folder for the temporary files of a run, with a path short enough for Ray's sockets."""
    try:
        return short_folder("accord-", ROOM, RAY_BYTES)
    except OSError as error:
        raise ConfigError(str(error)) from error


def _environment(scratch: Path) -> tuple[dict[str, str], list[str]]:
    """The environment of every process of a run, and a line for each variable that is left out."""
    _, notes = cleaned(os.environ)
    env = environment(TMPDIR=str(scratch.parent), **_commit())
    home = Path(os.path.expanduser("~"))
    if not os.access(home, os.W_OK):
        env.setdefault("MPLCONFIGDIR", str(scratch / "matplotlib"))
    return env, notes


def remove_unbegun(folders: Iterable[Path], fresh_s: float = FRESH_S) -> None:
    """Delete the run folders in which no round was begun and that no process holds.

    A folder younger than `fresh_s` may belong to another run that has not locked it yet, so this waits until all are
    older.
    """
    unbegun = [f for f in folders if (f / "config.toml").is_file() and RunFolder(f).has_no_round()]
    if unbegun:
        youngest = max(folder.stat().st_ctime for folder in unbegun)
        time.sleep(min(fresh_s, max(0.0, fresh_s - (time.time() - youngest))))
    for folder in unbegun:
        if folder.is_dir() and not is_held(folder):
            RunFolder(folder).discard_without_round()


def report_failure(request: Request, code: int, stream: Stream) -> None:
    """Print on stderr why a run stopped, and how to continue from its last committed round."""
    reason = "stopped" if code > 128 else "the run failed"
    if code == 1 and not stream.has_reason:
        reason = simulation_failure(stream.log) or reason
    typer.echo(f"accord: {reason}; Flower's log: {stream.log}", err=True)
    folder = Path(str(request.keys.get("run.resume") or stream.folder or ""))
    if folder.name and (folder / "checkpoints").is_dir() and not is_advice_run(folder):
        link = request.federation["superlink"]
        superlink_option = f" federation.superlink={link}" if link else ""
        typer.echo(
            "accord: committed rounds are kept; continue with: "
            f"accord resume {shlex.quote(str(folder))}{superlink_option}",
            err=True,
        )


def stage(folder: Path) -> Path:
    """Copy the sources of the bundle into `folder`.

    Flower reads every file below the app's folder, and a checkout may hold a virtual environment of tens of thousands.
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
    """ACCORD_COMMIT, the commit of this checkout for the manifest; the bundle has no .git."""
    if os.environ.get("ACCORD_COMMIT"):
        return {}
    # without a .git of its own, git would report the commit of an enclosing project
    git = shutil.which("git") if (ROOT / ".git").exists() else None
    head = (
        subprocess.run([git, "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
        if git
        else None
    )
    return {"ACCORD_COMMIT": head.stdout.strip()} if head and head.returncode == 0 else {}
