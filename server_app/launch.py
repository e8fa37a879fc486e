"""Run a federation with `flwr run`: a SuperLink that is stopped again, quiet output, an exit code to trust."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

import psutil
import tomli_w
import typer

from core.config import parse
from core.errors import ConfigError
from core.processes import BIN, FLOWER
from core.types import Scalar
from server_app.packing import Packing, check_this_device, pack, this_machine
from server_app.reading import of_advice
from server_app.words import ROOT, Request

START_S = 30.0
ANSI = re.compile(r"\x1b\[[0-9;]*m")
NOISE = re.compile(
    r"\s*(INFO|DEBUG|WARNING)\s*:|\((ClientAppActor|raylet|pid=)|Using SuperLink|Loading project"
    r"|Successfully (started|installed) "
)
QUIET = {
    **FLOWER,
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_enable_worker_prestart": "0",  # actors bring a runtime environment, so waiting workers are never used
    "RAY_prestart_worker_first_driver": "0",
    "PYTHONWARNINGS": "ignore::DeprecationWarning,ignore::FutureWarning",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def launch(asked: Request, *, verbose: bool) -> int:
    """Run and wait; 0 when the run finished, 1 when it failed, 130 after Ctrl-C, 143 after SIGTERM."""
    run_dir = Path(str(asked.keys.get("run.dir", "runs"))).expanduser().resolve()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        known = set(run_dir.iterdir())
    except OSError as error:
        raise ConfigError(f"run.dir = {str(run_dir)!r} cannot hold runs: {error.strerror}") from error
    scratch = Path(tempfile.mkdtemp(prefix="accord-"))
    config = scratch / "run.toml"
    config.write_text(tomli_w.dumps({**asked.keys, "run.dir": str(run_dir)}))
    name, simulation = str(asked.federation["superlink"]), list[str]()
    env = {**os.environ, **QUIET, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **_commit()}
    try:
        with contextlib.ExitStack() as stack:
            signal.signal(signal.SIGTERM, _end)  # whose default would leave the SuperLink and the run behind
            if not name:
                env["FLWR_HOME"] = str(scratch / "flwr")
                config, machine = parse(asked.keys), this_machine()
                check_this_device(config.model, machine)
                packing, told = pack(config, asked.federation, machine)
                simulation = ["--federation-config", _simulation(asked.federation, packing)]
                typer.echo("\n".join(told))
                typer.echo(
                    "start    SuperLink, Ray, clients; the plan follows when all have said what they hold"
                )
                if not packing.share:  # else Ray must first say which GPU is whose
                    env["RAY_preload_python_modules"] = "client_app.site"  # now, not at the first message
                name = stack.enter_context(_superlink(scratch, env))
            sources = str(stage(scratch / "app"))
            command = [str(BIN / "flwr"), "run", sources, name, "--stream", "--run-config", str(config)]
            raw, others = scratch / "stream.log", not simulation
            code = _stream([*command, *simulation], env, name, raw, asked_of_others=others, verbose=verbose)
    except KeyboardInterrupt as asked_to:
        code = asked_to.args[0] if asked_to.args else 130
    folder = Path(str(asked.keys.get("run.resume") or "")) if asked.keys.get("run.resume") else None
    folder = folder or next(iter(sorted(set(run_dir.iterdir()) - known)), None)
    if code == 0:
        shutil.rmtree(scratch, ignore_errors=True)
        return 0
    word = "stopped" if code > 128 else "the run failed"
    typer.echo(f"accord: {word}; Flower's log: {scratch / 'stream.log'}", err=True)
    if folder and (folder / "checkpoints").is_dir() and not of_advice(folder):
        again = f" federation.superlink={name}" if asked.federation["superlink"] else ""
        typer.echo(
            f"accord: nothing committed is lost; continue with: accord resume {folder}{again}", err=True
        )
    return code


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


def _stream(
    command: list[str],
    env: Mapping[str, str],
    connection: str,
    raw: Path,
    *,
    asked_of_others: bool,
    verbose: bool,
) -> int:
    """Show the run's own lines as they come, keep all of them in `raw`, and ask how it ended.

    asked_of_others: the SuperLink is not ours, and goes on with the run unless it is told to stop it.
    """
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
        except KeyboardInterrupt:
            if run_id and asked_of_others:
                _stop_run(run_id, connection, env)
            raise
        finally:
            process.kill()
    if not run_id:
        return 1
    return 0 if _status(run_id, connection, env) == "finished:completed" else 1


def _stop_run(run_id: str, connection: str, env: Mapping[str, str]) -> None:
    """Tell the SuperLink, which would go on without whoever asked for the run. A second Ctrl-C must not stop this."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    command = [str(BIN / "flwr"), "stop", run_id, connection]
    done = subprocess.run(command, env=dict(env), capture_output=True, text=True, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    if done.returncode:
        typer.echo(
            f"accord: the SuperLink could not be told to stop run {run_id}; try: flwr stop {run_id} {connection}",
            err=True,
        )


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
