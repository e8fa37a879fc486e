"""The model card: README.md of a run folder. It has counts and fingerprints of the data, never its text."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from core.plugins import default_options, plugin
from core.types import Json
from server_app.report.benchmarks import benchmark_method, benchmark_table
from server_app.report.clients import notes
from server_app.report.documents import markdown_table
from server_app.report.formatting import ABSENT, counted, interval, sample_size, scalar, value, verdict
from server_app.report.headline import headline
from server_app.report.reading import Run, read_run, rounds_history
from server_app.report.stats import METHOD
from tasks.toy_base import FILES

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
MAIN_KEYS = (
    "strategy.name", "strategy.weighting", "strategy.fraction-train", "run.seed", "run.num-server-rounds",
    "train.engine", "train.local-steps", "train.per-device-batch-size", "train.gradient-accumulation-steps",
    "train.learning-rate", "train.max-length", "lora.r", "lora.alpha", "lora.aggregation", "model.dtype",
    "model.quantization",
)  # fmt: skip
BUILT_IN_NOTE = (
    "The base model ships with Accord, whose package this code needs (`pip install .` in a checkout of it)."
)
LOCAL_NOTE = "The base model was a local folder, `{name}`: replace PATH/TO/BASE by its path."
MOST_CLIENTS = 50  # rows of the table of clients


def write_card(run_dir: Path | str) -> None:
    """Write README.md. Raises DataError on a damaged run folder."""
    run = read_run(run_dir)
    (run.dir / "README.md").write_text(card(run), "utf-8")


def card(run: Run) -> str:
    """The card as Markdown with a YAML header. Cards are published, so clients appear by number only."""
    run = replace(run, manifest=without_names(run.manifest))
    sections = {"Use": _use(run), "Results": _results(run), "Data": _data(run)}
    sections |= {"Numerics": _numerics(run), "Limits": _limits(run)}
    parts = [_head(run), f"# {run.task} adapter, trained with {run.strategy}", _summary(run)]
    parts += [f"## {title}\n\n{text}" for title, text in sections.items() if text]
    return "\n\n".join(parts) + "\n"


def without_names(manifest: Mapping[str, Json]) -> dict[str, Json]:
    """A copy of the manifest without the names of clients."""
    clients = {
        client: {key: value for key, value in facts.items() if key != "name"}
        for client, facts in (manifest.get("clients") or {}).items()
    }
    return {**manifest, "clients": clients}


def hub_id(run: Run) -> str | None:
    """Hub id of the base model; None for a built-in model or a local folder."""
    name = str(run.config.get("model.name", ""))
    local = name in FILES or Path(name).expanduser().exists()
    return name if HUB_ID.fullmatch(name) and not local else None


def base_name(run: Run) -> str:
    """Public name of the base model: its hub id, or the last part of its path, never a full local path."""
    name = str(run.config.get("model.name") or (run.manifest.get("base") or {}).get("name") or "unknown")
    return hub_id(run) or Path(name).name


def _head(run: Run) -> str:
    strategy = str((run.manifest.get("strategy") or {}).get("name", ""))
    tags = [tag for tag in ("federated-learning", "flower", "lora", run.task, strategy) if tag]
    base = hub_id(run)
    lines = ["---", "library_name: peft", "pipeline_tag: text-generation"]
    lines += [f"base_model: {json.dumps(base)}", "base_model_relation: adapter"] if base else []
    return "\n".join([*lines, "tags:", *(f"- {json.dumps(tag)}" for tag in tags), "---"])


def _summary(run: Run) -> str:
    clients = run.manifest.get("clients") or {}
    data = f" on the private data of {counted(len(clients), 'client')}" if clients else ""
    text = f"A LoRA adapter for the causal language model `{base_name(run)}`, trained with {run.task}{data}. "
    text += {
        "local": "Every client trained alone and kept its own adapter; this is the initial one that all started from.",
        "centralized": "All rows were pooled in one place: a baseline, not federated training.",
    }.get(str(run.config.get("strategy.name")), "Only adapter updates, counts and metrics left the clients.")
    if run.config.get("lora.aggregation") == "fedsa":
        text += (
            " Every client kept its own factor B; this adapter holds only the shared factor A, which has no effect "
            "without a B."
        )
    if run.config.get("task.name") == "pdpo":
        text += " Every client kept private parts of its model; this adapter holds only the shared part."
    if rounds := rounds_history(run.manifest):
        text += f" Rounds: {rounds}."
    if run.status == "finished":
        return text
    return f"**Not finished: {run.completed} of {counted(run.rounds, 'round')} complete.**\n\n{text}"


def _use(run: Run) -> str:
    name = str(run.config.get("model.name"))
    base, toy = hub_id(run), name in FILES
    revision = str(run.config.get("model.revision", "main"))
    options = f", revision={revision!r}" if base and revision != "main" else ""
    dtype = str(run.config.get("model.dtype", "float32"))
    code = [
        "import torch",
        *(["from accord import embedded_model"] if toy else []),
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"base = {f'embedded_model({name!r})' if toy else repr(base or 'PATH/TO/BASE')}",
        f"tokenizer = AutoTokenizer.from_pretrained(base{options})",
        f"model = AutoModelForCausalLM.from_pretrained(base{options}, dtype=torch.{dtype})",
        'model = PeftModel.from_pretrained(model, "PATH/TO/adapter")  # the folder next to this card',
    ]
    note = "" if base else LOCAL_NOTE.format(name=base_name(run))
    fingerprint = (run.manifest.get("base") or {}).get("fingerprint")
    check = f"The adapter belongs to the base with fingerprint `{fingerprint}`." if fingerprint else ""
    parts = (BUILT_IN_NOTE if toy else note, "```python\n" + "\n".join(code) + "\n```", check)
    return "\n\n".join(part for part in parts if part)


def _results(run: Run) -> str:
    estimates, benchmarks = headline(run), benchmark_table(run)
    if not estimates and not benchmarks.rows:
        return "Nothing was evaluated."
    rows = [f"| {e.name} | {value(e)} | {interval(e)} | {sample_size(e)} |" for e in estimates]
    table = "\n".join(["| | value | 95 % interval | over |", "| --- | ---: | ---: | ---: |", *rows])
    method = METHOD if any(e.low is not None for e in estimates) else ""
    parts = [verdict(estimates), table if rows else "", method]
    parts += [markdown_table(benchmarks), benchmark_method(benchmarks)] if benchmarks.rows else []
    return "\n\n".join(part for part in parts if part)


def _data(run: Run) -> str:
    clients = run.manifest.get("clients") or {}
    fingerprints = run.manifest.get("data") or {}
    source = str(run.config.get("data.source", ""))
    total = sum(int(facts.get("examples") or 0) for facts in clients.values())
    intro = (
        f"{counted(total, 'training row')} of {counted(len(clients), 'client')}"
        + (f" from the source `{source}`" if source else "")
        + ". The fingerprints identify the rows without revealing them."
    )
    ids = sorted({*clients, *fingerprints}, key=int)
    rows = [
        f"| {c} | {(clients.get(c) or {}).get('examples', ABSENT)} | "
        f"{sum(((clients.get(c) or {}).get('skipped') or {}).values())} | `{fingerprints.get(c, ABSENT)}` |"
        for c in ids[:MOST_CLIENTS]
    ]
    remarks = "\n".join(f"- {note[0].upper()}{note[1:]}." for note in notes(run.manifest, {}))
    table = "\n".join(["| client | rows | skipped | fingerprint |", "| ---: | ---: | ---: | --- |", *rows])
    rest = (
        f"{len(ids) - MOST_CLIENTS} more clients are listed in manifest.json."
        if len(ids) > MOST_CLIENTS
        else ""
    )
    return "\n\n".join(part for part in (intro, remarks, table if rows else "", rest) if part)


def _numerics(run: Run) -> str:
    plugin_keys = [
        f"{section}.{key}"
        for section, package in (("strategy", "strategies"), ("task", "tasks"))
        for key in default_options(plugin(package, str(run.config[f"{section}.name"])))
    ]
    keys = [*MAIN_KEYS, *(key for key in plugin_keys if key not in MAIN_KEYS)]
    lines = [f"- `{key}` = `{scalar(run.config[key])}`" for key in keys if key in run.config]
    versions = ", ".join(f"{name} {v}" for name, v in sorted((run.manifest.get("versions") or {}).items()))
    lines += [f"- versions: {versions}"] if versions else []
    return "\n".join(lines)


def _limits(run: Run) -> str:
    limits = [
        "- The held-out rows belong to the clients that trained; the results do not extend to other people.",
        "- One seed: the intervals cover the sampling of rows and clients, not the variation between training runs.",
    ]
    if run.task != "sft":
        limits.append("- Preferences are learned as labelled, including mistakes and biases of the labels.")
    if run.config.get("model.name") in FILES:
        limits.append("- The base model knows only a small synthetic language: this is a demonstration.")
    if str(run.config.get("data.source")) != "toy":
        limits.append("- Adapter weights can reveal training rows; no privacy guarantee is claimed.")
    return "\n".join(limits)
