"""What the terminal shows, as plain lines: the plan, one row a round, and what came of it.

The lines travel through log streams, so there is no cursor control, no colour and only ASCII of our own.
"""

import logging
import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from core.config import defaults
from core.logs import JsonLines, json_line
from core.plugins import knobs, plugin
from core.types import Json, Scalar
from server_app.reading import Record, Run, of_advice, read_record, read_run
from server_app.show import (
    ABSENT,
    alarms,
    behind,
    clip,
    counted,
    duration,
    hacking,
    interval,
    number,
    percent,
    plain,
    size,
    state,
    value,
    verdict,
)
from server_app.stats import ACCURACIES, TOKENS, headline, worst
from server_app.words import federated
from tasks.kit.encode import REMARKS

WIDTH = 100
WIDTHS = (7, 9, 10, 10, 16, 10, 10, 11, 14)
SHOWN_ANSWERS = 3
SHOWN_FAILURES = 3
PACE = 5  # rounds whose mean time predicts the rest
_form = "text"  # or "json": `speak` sets it


def speak(form: str) -> None:
    """From now on `say` writes as text or as json (run.log-format), and Flower's log with it."""
    global _form
    _form = form
    if form == "json":
        for handler in logging.getLogger("flwr").handlers:
            handler.setFormatter(JsonLines())


def say(line: str, *, level: str = "INFO", **facts: object) -> None:
    """Print a line at once: it is read through a log stream. facts: what JSON has beside the words."""
    if _form == "json" and line:
        line = json_line(level, "accord", " ".join(line.split()), **facts)
    if line or _form == "text":
        print(line, flush=True)


def say_head(line: str) -> None:
    """The head of a table, which JSON has not."""
    if _form == "text":
        say(line)


def say_round(lines: Sequence[Mapping[str, Json]], rounds: int) -> None:
    """The latest round: a row of the table, or as JSON its numbers; those that it lacks are absent."""
    if _form == "text":
        for line in round_lines(lines, rounds):
            say(line)
        return
    record = read_record(lines[-1])
    facts = {
        "round": record.round,
        "rounds": rounds,
        "clients": len(record.participants),
        "failed": {str(client): why for client, why in record.failed.items()},
        "loss": record.train.mean.get("loss"),
        **{name: record.eval.mean.get(name) for name in ACCURACIES},
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "seconds": record.total_s,
    }
    say(f"round {record.round} of {rounds}", **{name: v for name, v in facts.items() if v is not None})


def say_end(folder: Path) -> None:
    """What came of the run that lies in `folder`; as JSON where it lies, and no answers of a model."""
    if _form == "json":
        say("finished", run=str(folder), adapter=str(folder / "adapter"), report=str(folder / "report.html"))
        return
    for line in summary_lines(folder):
        say(line)


def plan_lines(config: Mapping[str, Scalar], manifest: Mapping[str, Json], run_dir: Path | str) -> list[str]:
    """Three lines that say what will happen. config: dotted keys; manifest: `clients` and `base` are in it."""
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
        f"{_who(manifest.get('clients') or {})}, seed {config['run.seed']}",
        f"         {counted(rounds, 'round')}{sampled}, {counted(steps, 'step')} x {counted(batch, 'row')} "
        f"per client and round; frozen base {base} is {role} client",
        f"         results go to {run_dir}",
    ]


def notes(of_template: Sequence[str], said: Iterable[Mapping[str, Json]]) -> list[str]:
    """What a plan adds, once each: notes of the chat template, and counts of rows by REMARKS from the clients."""
    counts = dict.fromkeys(REMARKS, 0)
    for facts in said:
        remarks: Json = facts.get("remarks")
        if not isinstance(remarks, dict):
            continue
        for why in REMARKS:
            counts[why] += remarks[why] if type(remarks.get(why)) is int else 0
    of_rows = [f"{counted(count, 'row')}: {why}" for why, count in counts.items() if count > 0]
    return [f"note     {text}" for text in (*of_template, *of_rows)]


def header() -> str:
    """The head of the table whose rows are `round_line`s."""
    return _row(("round", "clients", "loss", "accuracy", "worst client", "up", "down", "time", "left"))


def round_lines(lines: Sequence[Mapping[str, Json]], rounds: int) -> list[str]:
    """The row of the latest round, and an indented second line that names who failed, if any.

    lines: metrics.jsonl so far, parsed, at least one; the pace of the last rounds gives the time left.
    """
    record = read_record(lines[-1])
    asked = len({*record.participants, *record.failed})
    metric = next((name for name in ACCURACIES if name in record.eval.mean), TOKENS)
    low = worst(record.eval, metric)
    row = _row((
        f"{record.round}/{rounds}",
        f"{len(record.participants)}/{asked}" if asked else ABSENT,
        number(record.train.mean.get("loss")),
        percent(record.eval.mean.get(metric)),
        f"{percent(low[1])} ({low[0]})" if low else ABSENT,
        size(record.bytes_up),
        size(record.bytes_down),
        duration(record.total_s),
        duration(time_left([read_record(line) for line in lines[-PACE:]], rounds)),
    ))  # fmt: skip
    return [row, _failures(record)] if record.failed else [row]


def time_left(records: Sequence[Record], rounds: int) -> float | None:
    """Seconds, at the mean pace of the trained rounds given; None before the first."""
    took = [r.total_s for r in records if r.round > 0 and r.total_s is not None]
    return sum(took) / len(took) * (rounds - records[-1].round) if took else None


def rlft_plan(train: int, completions: int, held: int, selectors: int, judge: str) -> list[str]:
    """What the server will do after the federation."""
    lines = [
        "",
        f"rlft     {counted(train, 'prompt')} x {counted(completions, 'answer')}, labelled by "
        f"{counted(selectors, 'selector')}; {counted(held, 'prompt')} held out, judge: {judge}",
    ]
    if judge == "none":
        lines.append(
            "         without a judge the selectors choose the epoch, and reward hacking goes unseen"
        )
    return lines


def rlft_header(policy: str) -> str:
    """The head of the table whose rows are `rlft_line`s. signal, judge: win rates against the reference answers."""
    return (
        _row(("epoch", "pairs", "loss", "signal", "judge", "KL", "tokens", "", "")).rstrip() + f"   {policy}"
    )


def rlft_line(record: Mapping[str, float]) -> str:
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
    """Which epoch is kept, and whether the policy has learned to please its teachers only."""
    lines = [f"         epoch {best} of {len(records) - 1} is the best on held-out prompts: {folder}"]
    if not best:
        lines.append("         no epoch beat the untouched policy, which is what is kept")
    if turn is not None:
        lines.append(f"ALARM    {hacking(turn)}")
    return lines


def summary_lines(run_dir: Path | str) -> list[str]:
    """What came of the run: answers, headline numbers, where everything is, what to try next."""
    run = read_run(run_dir)
    lines = ["", state(run)]
    for answer in run.answers[:SHOWN_ANSWERS]:
        lines += ["", f"  prompt  {clip(plain(answer.prompt), WIDTH - 10)}"]
        for when, said in (("before", answer.before), ("after", answer.after)):
            lines.append(f"  {when:<6}  {clip(plain(said), WIDTH - 10) or ABSENT}")
    estimates = headline(run)
    if estimates:
        lines += ["", f"{'':<36}{'value':>14}{'95 % interval':>20}{'over':>14}"]
        lines += [f"  {e.name:<34}{value(e):>14}{interval(e):>20}{behind(e):>14}" for e in estimates]
    for said in (verdict(estimates), *alarms(run)):
        lines += ["", *textwrap.wrap(said, WIDTH)] if said else []
    return [*lines, "", *_places(run), *_next_commands(run)]


def resume_line(run_dir: Path | str) -> str:
    """What to do about a run that stopped."""
    return f"nothing committed is lost; continue with: accord resume {shlex.quote(str(run_dir))}"


def _places(run: Run) -> list[str]:
    adapters = run.adapters()
    note = (
        " (the shared start; each client keeps its own)" if run.config.get("strategy.name") == "local" else ""
    )
    found = [f"adapter  {path}{note}" for path in adapters]
    found += [f"policy   {path.parent}" for path in sorted(run.dir.glob("polic*/**/adapter_config.json"))]
    files = [("report", run.dir / "report.html"), ("card", run.dir / "README.md")]
    return found + [f"{what:<9}{path}" for what, path in files if path.exists()]


def _next_commands(run: Run) -> list[str]:
    """Commands that continue or question this run; its own settings are repeated in them. An advice runs its options
    itself."""
    if of_advice(run.dir):
        return []
    folder = shlex.quote(str(run.dir))
    if run.status != "finished":
        named = " federation.superlink=NAME" if run.manifest.get("federation") == "deployment" else ""
        return [f"next     accord resume {folder}{named}"]
    own = _own_words(run)
    seed = int(run.config.get("run.seed", 0))
    federated = run.config.get("strategy.name") != "local"
    other = {"strategy.name": "local" if federated else "fedavg"}
    gone = {
        key for key in own if key.startswith("rlft.")
    }  # the server of local clients has nothing to label with
    gone |= {f"strategy.{key}" for key in knobs(plugin("strategies", str(run.config["strategy.name"])))}
    kept = {key: v for key, v in own.items() if key not in gone}
    why = "does federating beat each client alone?" if federated else "does federating beat this?"
    tries = [
        (_command(kept | other), why),
        (_command(own | {"run.seed": seed + 1}), "does another seed agree?"),
    ]
    wide = max(len(command) for command, _ in tries)
    return [
        f"{'' if i else 'next':<9}{command:<{wide}}  # {reason}" for i, (command, reason) in enumerate(tries)
    ]


def _own_words(run: Run) -> dict[str, Scalar]:
    """What to say to `accord run` to get this run again, from the folder it was started in.

    Only the user knows the NAME of a deployment.
    """
    own = changed(run.config)
    if Path(str(own.get("run.dir", ""))) == Path("runs").resolve():
        del own["run.dir"]
    if run.manifest.get("federation") == "deployment":
        return {**own, "federation.superlink": "NAME"}
    waits = int(run.config.get("strategy.min-available-nodes", 0))
    nodes = max(waits, len(run.manifest.get("clients") or {}))  # some may not have answered
    if nodes == waits:
        own.pop("strategy.min-available-nodes", None)
    if nodes and nodes != federated({**own}, {})["num-supernodes"]:
        own["federation.num-supernodes"] = nodes
    return own


def changed(config: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The keys that differ from the defaults, without the one that resumes."""
    page = defaults()
    return {k: v for k, v in config.items() if k in page and v != page[k] and k != "run.resume"}


def _command(keys: Mapping[str, Scalar]) -> str:
    told = [f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in sorted(keys.items())]
    return shlex.join(["accord", "run", *told])


def _who(clients: Mapping[str, Mapping[str, Json]]) -> str:
    rows = [int(facts.get("examples") or 0) for facts in clients.values()]
    skipped = sum(sum((facts.get("skipped") or {}).values()) for facts in clients.values())
    each = f"{min(rows)} to {max(rows)}" if len(set(rows)) > 1 else str(rows[0]) if rows else "0"
    left_out = f", {skipped} skipped" if skipped else ""
    return f"{counted(len(rows), 'client')}, {counted(sum(rows), 'row')} ({each} each{left_out})"


def _failures(record: Record) -> str:
    told = [f"client {c} ({clip(plain(why), 60)})" for c, why in sorted(record.failed.items())]
    more = f" and {len(told) - SHOWN_FAILURES} more" if len(told) > SHOWN_FAILURES else ""
    return f"{'':<9}no answer: {', '.join(told[:SHOWN_FAILURES])}{more}"


def _row(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))
