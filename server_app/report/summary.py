"""The summary of a run in the terminal: answers, headline numbers, paths of the results, and next commands."""

import shlex
import textwrap
from collections.abc import Mapping
from pathlib import Path

from core.config import defaults, recommended_values
from core.plugins import default_options, plugin
from core.types import Scalar
from server_app.report.benchmarks import benchmark_table
from server_app.report.commands import FEDERATION, has_owners
from server_app.report.formatting import (
    ABSENT,
    WIDTH,
    alarms,
    aligned,
    clip,
    interval,
    plain,
    sample_size,
    state,
    value,
    verdict,
)
from server_app.report.headline import headline
from server_app.report.reading import Run, is_advice_run, read_run

SHOWN_ANSWERS = 3


def summary_lines(run_dir: Path | str) -> list[str]:
    """The lines of the summary of the run in a folder."""
    run = read_run(run_dir)
    lines = ["", state(run)]
    for answer in run.answers[:SHOWN_ANSWERS]:
        lines += ["", f"  prompt  {clip(plain(answer.prompt), WIDTH - 10)}"]
        for when, text in (("before", answer.before), ("after", answer.after)):
            lines.append(f"  {when:<6}  {clip(plain(text), WIDTH - 10) or ABSENT}")
    estimates = headline(run)
    if estimates:
        lines += ["", f"{'':<36}{'value':>14}{'95 % interval':>20}{'over':>14}"]
        lines += [f"  {e.name:<34}{value(e):>14}{interval(e):>20}{sample_size(e):>14}" for e in estimates]
    if (benchmarks := benchmark_table(run)).rows:
        lines += ["", *(f"  {line}" for line in aligned(benchmarks))]
    for text in (verdict(estimates), *alarms(run)):
        lines += ["", *textwrap.wrap(text, WIDTH)] if text else []
    return [*lines, "", *_result_paths(run), *_next_commands(run)]


def resume_line(run_dir: Path | str) -> str:
    """How to continue a run that stopped."""
    return f"all completed rounds are saved; continue with: accord resume {shlex.quote(str(run_dir))}"


def _result_paths(run: Run) -> list[str]:
    adapters = run.adapters()
    note = (
        " (the initial adapter; each client keeps its own trained one)"
        if run.config.get("strategy.name") == "local"
        else ""
    )
    lines = [f"adapter  {path}{note}" for path in adapters]
    lines += [f"policy   {path.parent}" for path in sorted(run.dir.glob("polic*/**/adapter_config.json"))]
    files = [("report", run.dir / "report.html"), ("card", run.dir / "README.md")]
    return lines + [f"{label:<9}{path}" for label, path in files if path.exists()]


def _next_commands(run: Run) -> list[str]:
    """Commands that resume the run, or compare it with a baseline and another seed, with the run's settings.

    None for a run of `accord advise`, which starts and resumes its runs itself.
    """
    if is_advice_run(run.dir):
        return []
    folder = shlex.quote(str(run.dir))
    if run.status != "finished":
        named = " federation.superlink=NAME" if run.manifest.get("federation") == "deployment" else ""
        return [f"next     accord resume {folder}{named}"]
    settings = _settings(run)
    seed = int(run.config.get("run.seed", 0))
    federated = run.config.get("strategy.name") != "local"
    other = {"strategy.name": "local" if federated else "fedavg"}
    # options of this strategy, and RLFT: with strategy `local` the server has no selectors to label with
    dropped = {key for key in settings if key.startswith("rlft.")}
    dropped |= {
        f"strategy.{key}" for key in default_options(plugin("strategies", str(run.config["strategy.name"])))
    }
    common = {key: v for key, v in settings.items() if key not in dropped}
    question = "does federating beat each client alone?" if federated else "does federating beat this?"
    commands = [
        (_command(common | other), question),
        (_command(settings | {"run.seed": seed + 1}), "does another seed agree?"),
    ]
    width = max(len(command) for command, _ in commands)
    return [
        f"{'' if i else 'next':<9}{command:<{width}}  # {purpose}"
        for i, (command, purpose) in enumerate(commands)
    ]


def _settings(run: Run) -> dict[str, Scalar]:
    """The keys that `accord run` needs to repeat this run from the folder it was started in.

    The name of a deployment is not stored: the placeholder NAME stands for it.
    """
    settings = changed(run.config)
    if Path(str(settings.get("run.dir", ""))) == Path("runs").resolve():
        del settings["run.dir"]
    if run.manifest.get("federation") == "deployment":
        return {**settings, "federation.superlink": "NAME"}
    min_nodes = int(run.config.get("strategy.min-available-nodes", 0))
    # clients that did not answer are not in the manifest
    at_least = max(min_nodes, len(run.manifest.get("clients") or {}))
    nodes = int(run.federation.get("num-supernodes", at_least))
    if nodes == min_nodes:
        settings.pop("strategy.min-available-nodes", None)
    if nodes and (nodes != FEDERATION["num-supernodes"] or has_owners(run.config)):
        settings["federation.num-supernodes"] = nodes
    return settings


def changed(config: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The keys whose values differ from the defaults, without run.resume."""
    default = defaults()
    fitted = recommended_values({**default, **config})
    return {
        k: v
        for k, v in config.items()
        if k in default and v not in (default[k], fitted.get(k, default[k])) and k != "run.resume"
    }


def _command(keys: Mapping[str, Scalar]) -> str:
    overrides = [f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in sorted(keys.items())]
    return shlex.join(["accord", "run", *overrides])
