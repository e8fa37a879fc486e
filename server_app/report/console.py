"""What the terminal shows, as plain lines: the plan, one row a round, and what came of it.

The lines travel through log streams, so there is no cursor control, no colour and only ASCII of our own.
"""

import logging
import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from core.config import FITTED, defaults, fitting_defaults
from core.logs import JsonLines, json_line
from core.naming import client_label, client_mark
from core.plugins import knobs, plugin
from core.types import Json, Scalar
from server_app.report.clients import notes
from server_app.report.commands import FEDERATION, has_owners
from server_app.report.formatting import (
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
from server_app.report.reading import Record, Run, names_of, of_advice, read_record, read_run
from server_app.report.stats import ACCURACIES, RIGHT, TOKENS, UTILITY, VALID, headline, worst
from tasks.tokens.encode import REMARKS
from tasks.toy_base import FILES

WIDTH = 100
WIDTHS = (7, 9, 10, 10, 16, 10, 10, 11, 14)
WORST = 4  # the column of the worst client
NOBODY: Mapping[int, str] = MappingProxyType({})  # names of clients, where they have none
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


def say_round(lines: Sequence[Mapping[str, Json]], rounds: int, names: Mapping[int, str] = NOBODY) -> None:
    """The latest round: a row of the table, or as JSON its numbers; those that it lacks are absent."""
    if _form == "text":
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
        *_wrapped(notes(manifest, names_of(manifest))),
        *_wrapped(said for said in (toy_warning(config),) if said),
        f"         results go to {run_dir}",
    ]


def toy_warning(config: Mapping[str, Scalar]) -> str:
    """What to say where rows of another source train the embedded model, which knows one small language only."""
    if config["model.name"] not in FILES or config["data.source"] == "toy":
        return ""
    return (
        f"warning: model.name = '{config['model.name']}' knows only a small synthetic language and learns nothing from "
        f"rows of data.source = '{config['data.source']}'; name a model, e.g. model.name=Qwen/Qwen2.5-0.5B-Instruct"
    )


def template_notes(of_template: Sequence[str], said: Iterable[Mapping[str, Json]]) -> list[str]:
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


def header(names: Mapping[int, str] = NOBODY) -> str:
    """The head of the table whose rows are `round_line`s."""
    return _row(("round", "clients", "loss", "accuracy", "worst client", "up", "down", "time", "left"), names)


def round_lines(
    lines: Sequence[Mapping[str, Json]], rounds: int, names: Mapping[int, str] = NOBODY
) -> list[str]:
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
        f"{percent(low[1])} ({client_mark(low[0], names)})" if low else ABSENT,
        size(record.bytes_up),
        size(record.bytes_down),
        duration(record.total_s),
        duration(time_left([read_record(line) for line in lines[-PACE:]], rounds)),
    ), names)  # fmt: skip
    remarks = [f"{'':<9}{remark}" for remark in record.remarks]
    return [row, *([_failures(record, names)] if record.failed else []), *remarks]


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
    heard = max(waits, len(run.manifest.get("clients") or {}))  # some may not have answered
    nodes = int(run.federation.get("num-supernodes", heard))
    if nodes == waits:
        own.pop("strategy.min-available-nodes", None)
    if nodes and (nodes != FEDERATION["num-supernodes"] or has_owners(run.config)):
        own["federation.num-supernodes"] = nodes
    return own


def changed(config: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The keys that differ from the defaults, without the one that resumes."""
    page = defaults()
    fitting = fitting_defaults({**page, **config, **dict.fromkeys(FITTED, 0.0)})
    return {
        k: v
        for k, v in config.items()
        if k in page and v not in (page[k], fitting.get(k, page[k])) and k != "run.resume"
    }


def _command(keys: Mapping[str, Scalar]) -> str:
    told = [f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in sorted(keys.items())]
    return shlex.join(["accord", "run", *told])


def _who(clients: Mapping[str, Mapping[str, Json]]) -> str:
    rows = [int(facts.get("examples") or 0) for facts in clients.values()]
    skipped = sum(sum((facts.get("skipped") or {}).values()) for facts in clients.values())
    each = f"{min(rows)} to {max(rows)}" if len(set(rows)) > 1 else str(rows[0]) if rows else "0"
    left_out = f", {skipped} skipped" if skipped else ""
    return f"{counted(len(rows), 'client')}, {counted(sum(rows), 'row')} ({each} each{left_out})"


def _failures(record: Record, names: Mapping[int, str]) -> str:
    told = [
        f"client {client_label(c, names)}: {clip(plain(why), 60)}"
        if names
        else f"client {c} ({clip(plain(why), 60)})"
        for c, why in sorted(record.failed.items())
    ]
    more = f" and {len(told) - SHOWN_FAILURES} more" if len(told) > SHOWN_FAILURES else ""
    return f"{'':<9}no answer: {', '.join(told[:SHOWN_FAILURES])}{more}"


def _row(cells: Sequence[str], names: Mapping[int, str] = NOBODY) -> str:
    """names: of the clients, for which the column of the worst is wider."""
    longest = max((len(client_mark(client, names)) for client in names), default=0)
    widths = [max(width, longest + 12) if i == WORST else width for i, width in enumerate(WIDTHS)]
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _wrapped(sentences: Iterable[str]) -> list[str]:
    return [
        line
        for sentence in sentences
        for line in textwrap.wrap(sentence, WIDTH, initial_indent=" " * 9, subsequent_indent=" " * 9)
    ]
