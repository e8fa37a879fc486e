"""Read a run folder into values, for report, plots, model card and console; nothing here writes."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from core.config import flatten
from core.errors import DataError
from core.files import read_json, read_toml
from core.naming import LONGEST, client_label, client_mark
from core.types import Json, Metrics, Scalar

CONFIG = "config.toml"  # every key as it ran; usable as a preset
ADVICE = "advice.toml"  # in the folder of an advice: the keys of the request; usable as a preset
# raised by `read_record` for a line that is not a record
RECORD_ERRORS = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Half:
    """Metrics of the training or of the evaluation half of a round. A metric that was not measured is absent."""

    mean: Metrics = field(default_factory=dict)
    clients: Mapping[int, Metrics] = field(default_factory=dict)

    def by_client(self, metric: str) -> dict[int, float]:
        """client -> value of the metric, sorted by client; values that are not finite are left out."""
        values = {c: m[metric] for c, m in sorted(self.clients.items()) if metric in m}
        return {client: value for client, value in values.items() if math.isfinite(value)}


@dataclass(frozen=True)
class Record:
    """One line of metrics.jsonl. Round 0 is the evaluation of the base model, before any training."""

    round: int
    participants: tuple[int, ...] = ()
    failed: Mapping[int, str] = field(default_factory=dict)  # client -> reason
    train: Half = Half()
    eval: Half = Half()
    bytes_up: int | None = None  # of this round only
    bytes_down: int | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)  # by stage, and in total as "total"
    route: Mapping[int, str] = field(default_factory=dict)  # client -> name of its group's adapter
    remarks: tuple[str, ...] = ()  # of the strategy on the round, a sentence each

    @property
    def total_s(self) -> float | None:
        """Duration of the round: its "total", else the sum of its stages; None without either."""
        return self.seconds.get("total", sum(self.seconds.values())) if self.seconds else None


@dataclass(frozen=True)
class Answer:
    """A public prompt and the model's answers to it before and after training; "" where there is none."""

    prompt: str
    before: str
    after: str


@dataclass(frozen=True)
class Run:
    """The contents of a run folder."""

    dir: Path
    config: Mapping[str, Scalar]  # dotted keys
    manifest: Mapping[str, Json]
    federation: Mapping[str, Scalar] = field(default_factory=dict)  # num-supernodes, if known
    records: tuple[Record, ...] = ()  # by round
    answers: tuple[Answer, ...] = ()
    rlft: Mapping[str, Json] = field(default_factory=dict)  # rlft/record.json
    # benchmark -> "before" and "after" training -> its metrics
    benchmarks: Mapping[str, Mapping[str, Metrics]] = field(default_factory=dict)

    @property
    def names(self) -> Mapping[int, str]:
        """client -> name, for clients that have one."""
        return names_of(self.manifest)

    def label(self, client: int, longest: int = LONGEST) -> str:
        """A client's name and number, or its number only."""
        return client_label(client, self.names, longest)

    def mark(self, client: int) -> str:
        """A short form of `label`, for parentheses."""
        return client_mark(client, self.names)

    @property
    def policies(self) -> Mapping[str, Json]:
        """The policies that RLFT trained, by name; that of the whole population first."""
        policies = self.rlft.get("policies", {})
        return {
            name: policies[name] for name in sorted(policies, key=lambda name: (name != "population", name))
        }

    @property
    def status(self) -> str:
        return str(self.manifest.get("status", "running"))

    @property
    def rounds(self) -> int:
        """Number of rounds requested."""
        return int(self.manifest.get("rounds", self.config.get("run.num-server-rounds", 0)))

    @property
    def completed(self) -> int:
        """The last completed round; 0 before the first."""
        return self.records[-1].round if self.records else 0

    @property
    def strategy(self) -> str:
        """The strategy with its numerics variant, e.g. "fedadam (paper)"."""
        facts = self.manifest.get("strategy", {})
        name = str(facts.get("name", self.config.get("strategy.name", "")))
        return f"{name} ({facts['variant']})" if facts.get("variant") else name

    @property
    def task(self) -> str:
        return str(self.manifest.get("task", self.config.get("task.name", "")))

    def adapters(self) -> list[Path]:
        """The adapter folders on disk: adapter/, and adapters/NAME/ for each if there are several."""
        configs = [
            *self.dir.glob("adapter/adapter_config.json"),
            *self.dir.glob("adapters/*/adapter_config.json"),
        ]
        return [config.parent for config in sorted(configs)]


def names_of(manifest: Mapping[str, Json]) -> dict[int, str]:
    """client -> name, for clients that have one in the manifest."""
    clients = (manifest.get("clients") or {}).items()
    return {int(client): str(facts["name"]) for client, facts in clients if facts.get("name")}


def read_config(folder: Path) -> tuple[dict[str, Scalar], dict[str, Scalar]]:
    """The dotted keys of a run's config.toml, and those of its section `federation` without the prefix."""
    flat = flatten(read_toml(folder / CONFIG))
    keys = {key: value for key, value in flat.items() if not key.startswith("federation.")}
    return keys, {key.removeprefix("federation."): flat[key] for key in flat.keys() - keys.keys()}


def rounds_history(manifest: Mapping[str, Json]) -> str:
    """How a run came to its rounds, e.g. "6 rounds, then resumed after round 6 to 10 rounds"; "" if never changed."""
    first, *resumptions = manifest.get("asked") or [{}]
    rounds, sentences = first.get("rounds"), []
    for plan in resumptions:
        changes = [
            f"{key} = {value}" for key, value in plan["changed"].items() if key != "run.num-server-rounds"
        ]
        sentence = f"resumed after round {plan['after']}"
        sentence += f" to {plan['rounds']} rounds" if plan["rounds"] != rounds else ""
        sentences.append(sentence + (f" with {', '.join(changes)}" if changes else ""))
        rounds = plan["rounds"]
    return f"{first['rounds']} rounds, then {', then '.join(sentences)}" if sentences else ""


def is_advice_run(run_dir: Path) -> bool:
    """Whether the run belongs to `accord advise`, whose runs are in <advice>/<option>/<run>."""
    return (run_dir.resolve().parent.parent / ADVICE).is_file()


def read_run(run_dir: Path | str) -> Run:
    """Read the run in a folder; files not written yet count as empty. Raises DataError on a damaged file."""
    folder = Path(run_dir)
    keys, federation = read_config(folder) if (folder / CONFIG).exists() else ({}, {})
    answers = read_json(folder / "answers.json", [])
    return Run(
        dir=folder,
        config=keys,
        manifest=read_json(folder / "manifest.json", {}),
        federation=federation,
        records=_records(folder / "metrics.jsonl"),
        answers=tuple(
            Answer(a["prompt"], a.get("before") or "", a.get("after") or "")
            for a in answers
            if a.get("prompt")
        ),
        rlft=read_json(folder / "rlft" / "record.json", {}),
        benchmarks={
            name: {when: _numbers(metrics) for when, metrics in results.items()}
            for name, results in read_json(folder / "benchmarks.json", {}).items()
        },
    )


def read_record(line: Mapping[str, Json]) -> Record:
    """Convert a parsed line of metrics.jsonl to a Record. Raises RECORD_ERRORS."""
    return Record(
        round=int(line["round"]),
        participants=tuple(int(c) for c in line.get("participants") or ()),
        failed={int(c): str(why) for c, why in (line.get("failed") or {}).items()},
        train=_half(line.get("train")),
        eval=_half(line.get("eval")),
        bytes_up=line.get("bytes_up"),
        bytes_down=line.get("bytes_down"),
        seconds=_numbers(line.get("seconds")),
        remarks=tuple(str(remark) for remark in line.get("remarks") or ()),
        route={int(c): str(name) for c, name in (line.get("route") or {}).items()},
    )


def _half(half: Mapping[str, Json] | None) -> Half:
    half = half or {}
    clients = (half.get("clients") or {}).items()
    return Half(_numbers(half.get("mean")), {int(c): _numbers(metrics) for c, metrics in clients})


def _numbers(metrics: Mapping[str, Json] | None) -> Metrics:
    return {name: float(value) for name, value in (metrics or {}).items() if isinstance(value, int | float)}


def _records(path: Path) -> tuple[Record, ...]:
    """The last line of each round, since a resumed run may repeat a round."""
    if not path.exists():
        return ()
    try:
        lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    by_round: dict[int, Record] = {}
    for number, line in enumerate(lines, 1):
        try:
            record = read_record(json.loads(line))
        except RECORD_ERRORS as error:
            if number == len(lines):
                break  # a torn last line: the process was killed while writing
            raise DataError(f"{path}, line {number}: expected a round's metrics, {error!r}") from error
        by_round[record.round] = record
    return tuple(by_round[rnd] for rnd in sorted(by_round))
