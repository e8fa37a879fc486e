"""Terminal output as plain lines: the plan, one row per round, and the results.

The lines pass through log streams, so they use no cursor control and no colour, and Accord's own text is ASCII.
"""

import logging
import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from core.config import defaults, recommended_values
from core.logs import JsonLines, json_line
from core.naming import client_label, client_mark
from core.plugins import knobs, plugin
from core.types import Json, Scalar
from server_app.report.clients import notes
from server_app.report.commands import FEDERATION, has_owners
from server_app.report.formatting import (
    ABSENT,
    alarms,
    clip,
    counted,
    duration,
    hacking,
    interval,
    number,
    percent,
    plain,
    sample_size,
    size,
    state,
    value,
    verdict,
)
from server_app.report.reading import Record, Run, is_advice_run, names_of, read_record, read_run
from server_app.report.stats import ACCURACIES, RIGHT, TOKENS, UTILITY, VALID, headline, worst
from tasks.tokens.encode import REMARKS
from tasks.toy_base import FILES

WIDTH = 100
WIDTHS = (7, 9, 10, 10, 16, 10, 10, 11, 14)
WORST_COLUMN = 4  # index in WIDTHS of the column "worst client"
NO_NAMES: Mapping[int, str] = MappingProxyType({})  # for clients without names
SHOWN_ANSWERS = 3
SHOWN_FAILURES = 3
PACE_ROUNDS = 5  # the mean time of the last ones predicts the time left
_format = "text"  # or "json"; set by `set_format`


def set_format(log_format: str) -> None:
    """Choose whether `say` and Flower's log write "text" or "json" (run.log-format)."""
    global _format
    _format = log_format
    if log_format == "json":
        for handler in logging.getLogger("flwr").handlers:
            handler.setFormatter(JsonLines())


def say(line: str, *, level: str = "INFO", **facts: object) -> None:
    """Print a line and flush, because log streams read it. facts: extra fields of the JSON object."""
    if _format == "json" and line:
        line = json_line(level, "accord", " ".join(line.split()), **facts)
    if line or _format == "text":
        print(line, flush=True)


def say_head(line: str) -> None:
    """Print the header of a table; omitted in JSON."""
    if _format == "text":
        say(line)


def say_round(lines: Sequence[Mapping[str, Json]], rounds: int, names: Mapping[int, str] = NO_NAMES) -> None:
    """Print the latest round, as a row of the table or as a JSON object; missing numbers are omitted from the JSON."""
    if _format == "text":
        for line in round_lines(lines, rounds, names):
            say(line)
        return
    record = read_record(lines[-1])
    facts = {
        "round": record.round,
        "rounds": rounds,
        "clients": len(record.participants),
        "failed": {str(client): why for client, why in record.failed.items()},
        "remarks": list(record.remarks) or None,
        "loss": record.train.mean.get("loss"),
        **{name: record.eval.mean.get(name) for name in (*ACCURACIES, VALID, RIGHT, UTILITY)},
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "seconds": record.total_s,
    }
    say(f"round {record.round} of {rounds}", **{name: v for name, v in facts.items() if v is not None})


def say_end(folder: Path) -> None:
    """Print the results of the run in `folder`; as JSON only its paths, without answers of the model."""
    if _format == "json":
        say("finished", run=str(folder), adapter=str(folder / "adapter"), report=str(folder / "report.html"))
        return
    for line in summary_lines(folder):
        say(line)


def plan_lines(config: Mapping[str, Scalar], manifest: Mapping[str, Json], run_dir: Path | str) -> list[str]:
    """The plan of a run, printed before its first round. config: dotted keys; manifest: with `clients` and `base`."""
    task, strategy = str(config["task.name"]), str(config["strategy.name"])
    variant = (manifest.get("strategy") or {}).get("variant")
    quantization = str(config["model.quantization"])
    model = f"{config['model.name']} ({config['model.dtype']}, LoRA r={config['lora.r']}"
    model += ")" if quantization == "none" else f", {quantization})"
    rounds, steps = int(config["run.num-server-rounds"]), int(config["train.local-steps"])
    share = float(config["strategy.fraction-train"])
    sampled = "" if share == 1 else f" with {share:.0%} of the clients"
    batch = int(config["train.per-device-batch-size"]) * int(config["train.gradient-accumulation-steps"])
    base = str((manifest.get("base") or {}).get("fingerprint") or "unknown")[:12]
    role = "the reference of every" if plugin("tasks", task).needs_reference else "the same on every"
    return [
        f"plan     {task} on {model} with {strategy}{f' ({variant})' if variant else ''}: "
        f"{_client_counts(manifest.get('clients') or {})}, seed {config['run.seed']}",
        f"         {counted(rounds, 'round')}{sampled}, {counted(steps, 'step')} x {counted(batch, 'row')} "
        f"per client and round; frozen base {base} is {role} client",
        *_wrapped(notes(manifest, names_of(manifest))),
        *_wrapped(warning for warning in (toy_warning(config),) if warning),
        f"         results go to {run_dir}",
    ]


def toy_warning(config: Mapping[str, Scalar]) -> str:
    """A warning if the built-in model, which knows only a small synthetic language, trains on other rows; else ""."""
    if config["model.name"] not in FILES or config["data.source"] == "toy":
        return ""
    return (
        f"warning: model.name = '{config['model.name']}' knows only a small synthetic language and learns nothing from "
        f"rows of data.source = '{config['data.source']}'; name a model, e.g. model.name=Qwen/Qwen2.5-0.5B-Instruct"
    )


def template_notes(of_template: Sequence[str], hellos: Iterable[Mapping[str, Json]]) -> list[str]:
    """Lines of the plan: notes on the chat template, and the row counts of REMARKS summed over the clients' hellos."""
    counts = dict.fromkeys(REMARKS, 0)
    for facts in hellos:
        remarks: Json = facts.get("remarks")
        if not isinstance(remarks, dict):
            continue
        for remark in REMARKS:  # hellos are untrusted: other remarks and values are ignored
            counts[remark] += remarks[remark] if type(remarks.get(remark)) is int else 0
    of_rows = [f"{counted(count, 'row')}: {remark}" for remark, count in counts.items() if count > 0]
    return [f"note     {text}" for text in (*of_template, *of_rows)]


def header(names: Mapping[int, str] = NO_NAMES) -> str:
    """The header of the table whose rows are `round_lines`."""
    return _row(("round", "clients", "loss", "accuracy", "worst client", "up", "down", "time", "left"), names)


def round_lines(
    lines: Sequence[Mapping[str, Json]], rounds: int, names: Mapping[int, str] = NO_NAMES
) -> list[str]:
    """The row of the latest round, then indented lines with failed clients and remarks, if any.

    lines: the parsed lines of metrics.jsonl so far, at least one. The time left assumes the pace of the last rounds.
    """
    record = read_record(lines[-1])
    sampled = len({*record.participants, *record.failed})
    metric = next((name for name in ACCURACIES if name in record.eval.mean), TOKENS)
    lowest = worst(record.eval, metric)
    row = _row((
        f"{record.round}/{rounds}",
        f"{len(record.participants)}/{sampled}" if sampled else ABSENT,
        number(record.train.mean.get("loss")),
        percent(record.eval.mean.get(metric)),
        f"{percent(lowest[1])} ({client_mark(lowest[0], names)})" if lowest else ABSENT,
        size(record.bytes_up),
        size(record.bytes_down),
        duration(record.total_s),
        duration(time_left([read_record(line) for line in lines[-PACE_ROUNDS:]], rounds)),
    ), names)  # fmt: skip
    remarks = [f"{'':<9}{remark}" for remark in record.remarks]
    return [row, *([_failures(record, names)] if record.failed else []), *remarks]


def time_left(records: Sequence[Record], rounds: int) -> float | None:
    """Seconds left at the mean pace of the trained rounds in `records`; None before the first."""
    durations = [r.total_s for r in records if r.round > 0 and r.total_s is not None]
    return sum(durations) / len(durations) * (rounds - records[-1].round) if durations else None


def rlft_plan(train: int, completions: int, held_out: int, selectors: int, judge: str) -> list[str]:
    """The plan of RLFT, printed after the last federated round. train, held_out: numbers of prompts."""
    lines = [
        "",
        f"rlft     {counted(train, 'prompt')} x {counted(completions, 'answer')}, labelled by "
        f"{counted(selectors, 'selector')}; {counted(held_out, 'prompt')} held out, judge: {judge}",
    ]
    if judge == "none":
        lines.append(
            "         without a judge the selectors choose the best epoch and reward hacking goes undetected"
        )
    return lines


def rlft_header(policy: str) -> str:
    """The header of the table whose rows are `rlft_line`s; signal and judge are win rates against the references."""
    return (
        _row(("epoch", "pairs", "loss", "signal", "judge", "KL", "tokens", "", "")).rstrip() + f"   {policy}"
    )


def rlft_line(record: Mapping[str, float]) -> str:
    """The table row of one epoch."""
    pairs = record.get("pairs")
    return _row((
        str(record["epoch"]),
        ABSENT if pairs is None else f"{pairs:,}",
        number(record.get("loss")),
        percent(record["signal/win_rate"]),
        percent(record.get("judge/win_rate", record.get("judge/accuracy"))),
        number(record["kl"]),
        number(record["tokens"]),
        "",
        "",
    )).rstrip()  # fmt: skip


def rlft_outcome(records: Sequence[Json], best: int, turn: int | None, folder: Path) -> list[str]:
    """Lines that name the best epoch, and raise an alarm if the policy hacks its reward. turn: from `hacking_epoch`."""
    lines = [
        f"         epoch {best} of {len(records) - 1} is the best on held-out prompts, saved in {folder}"
    ]
    if not best:
        lines.append("         no epoch improved on the untrained policy, which is saved instead")
    if turn is not None:
        lines.append(f"ALARM    {hacking(turn)}")
    return lines


def summary_lines(run_dir: Path | str) -> list[str]:
    """Summary of a run: answers before and after, headline numbers, paths of the results, and next commands."""
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
    dropped |= {f"strategy.{key}" for key in knobs(plugin("strategies", str(run.config["strategy.name"])))}
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


def _client_counts(clients: Mapping[str, Mapping[str, Json]]) -> str:
    rows = [int(facts.get("examples") or 0) for facts in clients.values()]
    skipped = sum(sum((facts.get("skipped") or {}).values()) for facts in clients.values())
    per_client = f"{min(rows)} to {max(rows)}" if len(set(rows)) > 1 else str(rows[0]) if rows else "0"
    note = f", {skipped} skipped" if skipped else ""
    return f"{counted(len(rows), 'client')}, {counted(sum(rows), 'row')} ({per_client} each{note})"


def _failures(record: Record, names: Mapping[int, str]) -> str:
    failures = [
        f"client {client_label(c, names)}: {clip(plain(reason), 60)}"
        if names
        else f"client {c} ({clip(plain(reason), 60)})"
        for c, reason in sorted(record.failed.items())
    ]
    rest = f" and {len(failures) - SHOWN_FAILURES} more" if len(failures) > SHOWN_FAILURES else ""
    return f"{'':<9}no answer: {', '.join(failures[:SHOWN_FAILURES])}{rest}"


def _row(cells: Sequence[str], names: Mapping[int, str] = NO_NAMES) -> str:
    """A table row. names: of the clients; the column of the worst client is as wide as the longest needs."""
    longest_mark = max((len(client_mark(client, names)) for client in names), default=0)
    widths = [max(width, longest_mark + 12) if i == WORST_COLUMN else width for i, width in enumerate(WIDTHS)]
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _wrapped(sentences: Iterable[str]) -> list[str]:
    return [
        line
        for sentence in sentences
        for line in textwrap.wrap(sentence, WIDTH, initial_indent=" " * 9, subsequent_indent=" " * 9)
    ]
