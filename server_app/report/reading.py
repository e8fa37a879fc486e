"""A run folder as values: what report, plots, card and console read; nothing here writes."""

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

CONFIG = "config.toml"  # every key as it ran, itself a preset
ASKED = "advice.toml"  # in the folder of an advice: what was asked for, itself a preset
# how `read_record` fails on a line that is none
NO_RECORD = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Half:
    """The training or the evaluation half of a round. A metric nobody measured is not in it."""

    mean: Metrics = field(default_factory=dict)
    clients: Mapping[int, Metrics] = field(default_factory=dict)

    def by_client(self, metric: str) -> dict[int, float]:
        """client -> its finite value of the metric, by client."""
        found = {c: m[metric] for c, m in sorted(self.clients.items()) if metric in m}
        return {client: value for client, value in found.items() if math.isfinite(value)}


@dataclass(frozen=True)
class Record:
    """One line of metrics.jsonl. Round 0 is the base, before any training."""

    round: int
    participants: tuple[int, ...] = ()
    failed: Mapping[int, str] = field(default_factory=dict)  # client -> reason
    train: Half = Half()
    eval: Half = Half()
    bytes_up: int | None = None  # of this round alone
    bytes_down: int | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)  # by stage, and "total"
    route: Mapping[int, str] = field(default_factory=dict)  # client -> the adapter of its group
    remarks: tuple[str, ...] = ()  # what the strategy says of the round, a sentence each

    @property
    def total_s(self) -> float | None:
        return self.seconds.get("total", sum(self.seconds.values())) if self.seconds else None


@dataclass(frozen=True)
class Answer:
    """A public prompt and what the model said to it; "" where it was never asked."""

    prompt: str
    before: str
    after: str


@dataclass(frozen=True)
class Run:
    dir: Path
    config: Mapping[str, Scalar]  # dotted keys
    manifest: Mapping[str, Json]
    federation: Mapping[str, Scalar] = field(default_factory=dict)  # num-supernodes, where it is known
    records: tuple[Record, ...] = ()  # by round
    answers: tuple[Answer, ...] = ()
    rlft: Mapping[str, Json] = field(default_factory=dict)  # rlft/record.json

    @property
    def names(self) -> Mapping[int, str]:
        """client -> what it is called, of those that have a name."""
        return names_of(self.manifest)

    def label(self, client: int, longest: int = LONGEST) -> str:
        """A client's name and number, or its number alone."""
        return client_label(client, self.names, longest)

    def mark(self, client: int) -> str:
        """The same, short, for parentheses."""
        return client_mark(client, self.names)

    @property
    def policies(self) -> Mapping[str, Json]:
        """What RLFT made, by name; that of the whole population first."""
        found = self.rlft.get("policies", {})
        return {name: found[name] for name in sorted(found, key=lambda name: (name != "population", name))}

    @property
    def status(self) -> str:
        return str(self.manifest.get("status", "running"))

    @property
    def rounds(self) -> int:
        """The rounds it was asked for."""
        return int(self.manifest.get("rounds", self.config.get("run.num-server-rounds", 0)))

    @property
    def done(self) -> int:
        """The last round it completed."""
        return self.records[-1].round if self.records else 0

    @property
    def strategy(self) -> str:
        """The strategy with its numerics variant, e.g. "fedadam (paper)"."""
        named = self.manifest.get("strategy", {})
        name = str(named.get("name", self.config.get("strategy.name", "")))
        return f"{name} ({named['variant']})" if named.get("variant") else name

    @property
    def task(self) -> str:
        return str(self.manifest.get("task", self.config.get("task.name", "")))

    def adapters(self) -> list[Path]:
        """The adapter folders on disk: adapter/, and where there are several, adapters/ with one for each."""
        found = [
            *self.dir.glob("adapter/adapter_config.json"),
            *self.dir.glob("adapters/*/adapter_config.json"),
        ]
        return [config.parent for config in sorted(found)]


def names_of(manifest: Mapping[str, Json]) -> dict[int, str]:
    """client -> its name, as the manifest of a run has it."""
    clients = (manifest.get("clients") or {}).items()
    return {int(client): str(facts["name"]) for client, facts in clients if facts.get("name")}


def read_config(folder: Path) -> tuple[dict[str, Scalar], dict[str, Scalar]]:
    """The keys of a run's config.toml, and those of `federation` by their short names."""
    flat = flatten(read_toml(folder / CONFIG))
    keys = {key: value for key, value in flat.items() if not key.startswith("federation.")}
    return keys, {key.removeprefix("federation."): flat[key] for key in flat.keys() - keys.keys()}


def asked_for(manifest: Mapping[str, Json]) -> str:
    """How a run came to its rounds, e.g. "6 rounds, then resumed after round 6 to 10 rounds"; "" of one plan."""
    first, *later = manifest.get("asked") or [{}]
    rounds, steps = first.get("rounds"), []
    for plan in later:
        others = [
            f"{key} = {value}" for key, value in plan["changed"].items() if key != "run.num-server-rounds"
        ]
        step = f"resumed after round {plan['after']}"
        step += f" to {plan['rounds']} rounds" if plan["rounds"] != rounds else ""
        steps.append(step + (f" with {', '.join(others)}" if others else ""))
        rounds = plan["rounds"]
    return f"{first['rounds']} rounds, then {', then '.join(steps)}" if steps else ""


def of_advice(run_dir: Path) -> bool:
    """Whether the run is an option of `accord advise`, which lies in <advice>/<option>/<run>."""
    return (run_dir.resolve().parent.parent / ASKED).is_file()


def read_run(run_dir: Path | str) -> Run:
    """The run in a folder; files not written yet count as empty. Raises DataError on a broken one."""
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
    )


def read_record(line: Mapping[str, Json]) -> Record:
    """A line of metrics.jsonl, parsed by json, to a Record."""
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
    """The last line of each round; a resumed run may have repeated one."""
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
        except NO_RECORD as error:
            if number == len(lines):
                break  # the process was killed while it wrote
            raise DataError(f"{path}, line {number}: expected a round's metrics, {error!r}") from error
        by_round[record.round] = record
    return tuple(by_round[rnd] for rnd in sorted(by_round))
