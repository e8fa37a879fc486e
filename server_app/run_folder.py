"""The folder a run leaves: config, manifest, metrics, checkpoints. A line of metrics and a checkpoint make a round."""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import tomli_w
from safetensors import SafetensorError

from core import __version__, store
from core.errors import CheckpointError, ConfigError
from core.files import read_json
from core.sections import Config
from core.types import Json, ServerState
from server_app.report.reading import CONFIG, RECORD_ERRORS, read_config, read_record, rounds_history

log = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2
MAY_CHANGE = (
    "run.resume",
    "run.dir",
    "run.num-server-rounds",
    "run.log-format",
    "client.state-dir",
    "site.",
    "fault.",
    "eval.",
    "rlft.",
)
# what is laid out over all rounds of a run, unless it has this value
WHOLE_RUN = {
    "train.lr-schedule": "constant",
    "train.total-epochs": 0.0,
    "strategy.server-lr-schedule": "constant",
}
PACKAGES = ("flwr", "torch", "transformers", "peft", "trl", "datasets", "ray", "safetensors", "numpy")
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    # --- opening ---------------------------------------------------------------

    @staticmethod
    def create(config: Config) -> "RunFolder":
        """A new folder `<time>_<task>_<strategy>_<model>_s<seed>` under run.dir."""
        model = re.sub(r"[^A-Za-z0-9.-]+", "-", config.model.name.rstrip("/").split("/")[-1]) or "model"
        stem = "_".join(
            [
                datetime.now(UTC).strftime("%Y%m%d-%H%M%S"),
                config.task_choice.name,
                config.strategy_choice.name,
                model,
                f"s{config.run.seed}",
            ]
        )
        parent = Path(config.run.dir).expanduser().resolve()
        for attempt in range(1, 100):
            path = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise CheckpointError(
                    f"run.dir = {config.run.dir!r}: cannot write to {parent}: {error}"
                ) from error
            folder = RunFolder(path)
            folder.write_config(config)
            return folder
        raise CheckpointError(f"{parent} already holds 99 runs called {stem}")

    @staticmethod
    def reopen(config: Config) -> "RunFolder":
        """The folder named by run.resume; refuses another configuration, naming the keys."""
        path = Path(config.run.resume).expanduser().resolve()
        if not (path / CONFIG).is_file():
            raise CheckpointError(f"run.resume = {config.run.resume!r}: {path} holds no config.toml of a run")
        then, _ = read_config(path)
        now = dict(config.flat)
        changed = [k for k in sorted(then.keys() | now.keys()) if then.get(k) != now.get(k)]
        if refused := [k for k in changed if not k.startswith(MAY_CHANGE)]:
            told = ", ".join(f"{k} was {then.get(k)!r} and is {now.get(k)!r}" for k in refused)
            raise CheckpointError(f"{path.name} cannot be resumed with another configuration: {told}")
        planned = [k for k, constant in WHOLE_RUN.items() if now.get(k) != constant]
        if planned and "run.num-server-rounds" in changed:
            raise CheckpointError(
                f"{path.name} was planned for run.num-server-rounds = {then['run.num-server-rounds']} by "
                f"{planned[0]} = {now[planned[0]]!r} and cannot be extended to {now['run.num-server-rounds']}: "
                "its past rounds would have been others; start a new run"
            )
        folder = RunFolder(path)
        done = max(store.rounds(folder.checkpoints), default=0)
        if (rounds := config.run.num_server_rounds) < done:
            raise CheckpointError(
                f"{path.name} has done {done} rounds, and run.num-server-rounds = {rounds} asks for fewer: name {done} "
                "or more, or start a new run"
            )
        return folder

    # --- configuration -------------------------------------------------------------

    def resumed(self, config: Config, done: int) -> list[Json]:
        """What was asked for when, for the manifest: the first plan, then each resumption that changed a key."""
        then, _ = read_config(self.path)
        changed = {
            key: value
            for key, value in config.flat
            if then.get(key) != value and key not in ("run.resume", "run.dir")
        }
        asked: list[Json] = self.manifest().get("asked") or [
            {"after": 0, "rounds": then.get("run.num-server-rounds")}
        ]
        more = {"after": done, "rounds": config.run.num_server_rounds, "changed": changed}
        return [*asked, more] if changed and asked[-1] != more else asked

    def write_config(self, config: Config, *, clients: int = 0) -> None:
        """config.toml: every key as it runs and the number of clients, so that it is a preset that repeats the run.

        clients: of the federation; 0: as the file has it.
        """
        keys = {**dict(config.flat), "run.resume": ""}
        if not clients and (self.path / CONFIG).exists():
            clients = int(read_config(self.path)[1].get("num-supernodes", 0))
        if clients:
            keys["federation.num-supernodes"] = clients
        said = rounds_history(self.manifest())
        comment = f"# {said}\n" if said else ""
        store.write_text(self.path / CONFIG, comment + tomli_w.dumps(_nested(keys)))

    def hold(self) -> int:
        """Keep other processes out for as long as this one lives; CheckpointError when one is already in.

        A run goes on without the terminal that started it: it must not be resumed beside itself.
        """
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise CheckpointError(
                f"{self.name} is still being run by another process; wait for it, or stop it with `flwr stop`"
            ) from error
        except OSError:
            log.warning("run=%s cannot be locked on this file system", self.name)
        return handle

    def is_unbegun(self) -> bool:
        """Whether no round was committed: neither a checkpoint nor a line of metrics is in it."""
        metrics = self.path / "metrics.jsonl"
        return not store.rounds(self.checkpoints) and not (metrics.is_file() and metrics.stat().st_size)

    def discard_unbegun(self) -> bool:
        """Delete the folder of a run that never began; whether it did so."""
        if not self.is_unbegun():
            return False
        shutil.rmtree(self.path, ignore_errors=True)
        return True

    def check_base(self, name: str, fingerprint: str) -> None:
        """ConfigError unless the run began with this base model, or has not begun."""
        then = self.manifest().get("base", {}).get("fingerprint", fingerprint)
        if then != fingerprint:
            raise ConfigError(f"{self.name} ran with base model {then[:12]}; {name!r} is {fingerprint[:12]}")

    # --- state -------------------------------------------------------------------

    def load_state(self) -> ServerState | None:
        """The newest whole checkpoint, or None before the first; what a crash left of later rounds is dropped."""
        saved = store.rounds(self.checkpoints)
        store.prune(self.checkpoints, set(saved[-KEPT_CHECKPOINTS:]))
        for part in self.path.glob(".*.part-*"):
            part.unlink()
        last = saved[-1] if saved else -1
        self._write_metrics([r for r in self.metrics() if r["round"] <= last])
        if not saved:
            return None
        whole = store.round_folder(self.checkpoints, last)
        try:
            trees, facts = store.load(whole)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            before = f"delete it to go on from round {saved[-2]}" if len(saved) > 1 else "start a new run"
            raise CheckpointError(f"{whole} is no whole checkpoint ({error}); {before}") from error
        parts: dict[str, Json] = {"adapters": {}, "memory": {}}
        for name, tree in trees.items():
            kind, short = name.split("/", 1)
            parts[kind][short] = tree
        return ServerState(facts["seed"], facts["round"], parts["adapters"], parts["memory"], facts["facts"])

    def commit(self, state: ServerState, record: Json) -> None:
        """Write a round: first its line of metrics, then the checkpoint that makes it count; CheckpointError if not."""
        metrics = self.path / "metrics.jsonl"
        before = metrics.stat().st_size if metrics.is_file() else 0
        trees = {f"adapters/{n}": t for n, t in state.adapters.items()}
        trees |= {f"memory/{n}": t for n, t in state.memory.items()}
        facts = {"seed": state.seed, "round": state.round, "facts": state.facts}
        try:
            store.append(metrics, json.dumps(record, sort_keys=True) + "\n")
            store.save(store.round_folder(self.checkpoints, state.round), trees, facts)
        except CheckpointError:
            os.truncate(metrics, before)
            raise
        store.prune(self.checkpoints, set(store.rounds(self.checkpoints)[-KEPT_CHECKPOINTS:]))

    def metrics(self) -> list[Json]:
        """The records of the rounds so far; a line torn by a crash is not one."""
        path = self.path / "metrics.jsonl"
        try:
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            records = [json.loads(line) for line in lines if line.endswith(b"\n")]
            for record in records:
                read_record(record)
        except (OSError, *RECORD_ERRORS) as error:
            raise CheckpointError(f"{path}: expected a round's metrics in each line, {error!r}") from error
        return records

    def _write_metrics(self, records: list[Json]) -> None:
        lines = [json.dumps(r, sort_keys=True) + "\n" for r in records]
        store.write_text(self.path / "metrics.jsonl", "".join(lines))

    # --- manifest ------------------------------------------------------------------

    def manifest(self) -> Json:
        return read_json(self.path / "manifest.json", {})

    def write_manifest(self, **facts: Json) -> None:
        """Merge facts into the manifest, and what follows from the metrics."""
        records = self.metrics()
        seconds = [r.get("seconds", {}) for r in records]
        told = {**self.manifest(), **facts}
        loads = Counter({c: said.get("loads", 0) for c, said in told.get("clients", {}).items()})
        for record in records:
            loads.update(record.get("loads", {}))
        folded = {
            "base_loads": dict(loads),
            "participation": {str(r["round"]): r["participants"] for r in records if r["round"]},
            "failed": {str(r["round"]): r["failed"] for r in records if r["failed"]},
            "bytes": {
                "up": sum(r.get("bytes_up", 0) for r in records),
                "down": sum(r.get("bytes_down", 0) for r in records),
            },
            "seconds": sum(s.get("total", s.get("evaluate", 0.0)) for s in seconds),
        }
        text = json.dumps({**told, **folded}, indent=2, sort_keys=True)
        store.write_text(self.path / "manifest.json", text + "\n")


def is_held(folder: Path) -> bool:
    """Whether a process runs this run; True as well on a file system without locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def provenance(config: Config) -> Json:
    """What ran: versions, code, task, strategy, seed. The base and the data are added when they are known."""
    strategy: Json = {"name": config.strategy_choice.name}
    options, aggregation = dict(config.strategy_choice.options), config.lora.aggregation
    how = [
        options.get("variant"),
        options.get("server-rule"),
        aggregation if aggregation != "separate" else "",
    ]
    if variant := ", ".join(str(word) for word in how if word):
        strategy["variant"] = variant
    return {
        "accord": __version__,
        "versions": {p: version(p) for p in PACKAGES},
        "commit": os.environ.get("ACCORD_COMMIT") or None,
        "code": _code_fingerprint(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "task": config.task_choice.name,
        "strategy": strategy,
        "seed": config.run.seed,
        "rounds": config.run.num_server_rounds,
    }


def _code_fingerprint() -> str:
    """blake2b over the Python files of the app as it runs here."""
    digest = hashlib.blake2b(digest_size=16)
    for package in ("client_app", "core", "evals", "server_app", "strategies", "tasks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _nested(flat: Json) -> Json:
    out: Json = {}
    for key, value in flat.items():
        section, short = key.split(".", 1)
        out.setdefault(section, {})[short] = value
    return out
