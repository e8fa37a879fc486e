"""The run folder: config, manifest, metrics and checkpoints. A round counts once both metrics and checkpoint exist."""

import fcntl
import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

import tomli_w
from safetensors import SafetensorError

from core import store
from core.errors import CheckpointError, ConfigError
from core.files import read_json
from core.sections import Config
from core.tree import Tree
from core.types import Json, ServerState
from server_app.report.reading import CONFIG, RECORD_ERRORS, read_config, read_record, rounds_history
from server_app.resumption import check_resumable, extend_plans

log = logging.getLogger(__name__)

SPOOL = ".spool"
KEPT_CHECKPOINTS = 2  # the latest ones; older ones are deleted


@dataclass(frozen=True)
class RunFolder:
    """A run folder on disk."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    # --- creating and reopening ---------------------------------------------------------------

    @staticmethod
    def create(config: Config) -> "RunFolder":
        """Create the folder `<time>_<task>_<strategy>_<model>_s<seed>` under run.dir.

        Raises CheckpointError if it cannot be written.
        """
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
        raise CheckpointError(f"{parent} already contains 99 runs named {stem}: choose another run.dir")

    @staticmethod
    def reopen(config: Config) -> "RunFolder":
        """Open the folder that run.resume names. CheckpointError if it is no run or its configuration differs."""
        path = Path(config.run.resume).expanduser().resolve()
        if not (path / CONFIG).is_file():
            raise CheckpointError(
                f"run.resume = {config.run.resume!r}: {path} is not a run folder: it has no config.toml"
            )
        folder = RunFolder(path)
        check_resumable(config, path, completed=max(store.rounds(folder.checkpoints), default=0))
        return folder

    # --- configuration -------------------------------------------------------------

    def plan_history(self, config: Config, completed: int) -> list[Json]:
        """The list `asked` of the manifest: the first plan, then each resumption that changed a key.

        completed: rounds completed before this resumption.
        """
        old, _ = read_config(self.path)
        return extend_plans(self.manifest().get("asked"), old, config, completed)

    def write_config(self, config: Config, *, clients: int = 0) -> None:
        """Write config.toml: every key and the number of clients, so that it is a preset that repeats the run.

        clients: number in the federation; 0 keeps the number in the file.
        """
        keys = {**dict(config.flat), "run.resume": ""}
        if not clients and (self.path / CONFIG).exists():
            clients = int(read_config(self.path)[1].get("num-supernodes", 0))
        if clients:
            keys["federation.num-supernodes"] = clients
        history = rounds_history(self.manifest())
        comment = f"# {history}\n" if history else ""
        store.write_text(self.path / CONFIG, comment + tomli_w.dumps(_nested(keys)))

    def hold(self) -> int:
        """Lock the folder until this process ends; returns the file descriptor of the lock.

        A run continues without the terminal that started it, so a second process must not resume it meanwhile.

        Raises:
            CheckpointError: Another process holds the lock.
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

    def has_no_round(self) -> bool:
        """Whether no round was committed: the folder has neither a checkpoint nor a line of metrics."""
        metrics = self.path / "metrics.jsonl"
        return not store.rounds(self.checkpoints) and not (metrics.is_file() and metrics.stat().st_size)

    def discard_without_round(self) -> bool:
        """Delete the folder if no round was committed; returns whether it was deleted."""
        if not self.has_no_round():
            return False
        shutil.rmtree(self.path, ignore_errors=True)
        return True

    def check_base(self, name: str, fingerprint: str) -> None:
        """Raise ConfigError if the run began with a base model of another fingerprint."""
        expected = self.manifest().get("base", {}).get("fingerprint", fingerprint)
        if expected != fingerprint:
            raise ConfigError(
                f"{self.name} was run with a base model of fingerprint {expected[:12]}; "
                f"model.name = {name!r} has {fingerprint[:12]}"
            )

    # --- state -------------------------------------------------------------------

    def load_state(self) -> ServerState | None:
        """Load the latest checkpoint, or None before the first, and delete remains of later rounds after a crash.

        Raises CheckpointError if the checkpoint is damaged.
        """
        saved = store.rounds(self.checkpoints)
        store.prune(self.checkpoints, set(saved[-KEPT_CHECKPOINTS:]))
        for part in self.path.glob(".*.part-*"):
            part.unlink()
        shutil.rmtree(self.path / SPOOL, ignore_errors=True)
        latest = saved[-1] if saved else -1
        self._write_metrics([r for r in self.metrics() if r["round"] <= latest])
        if not saved:
            return None
        folder = store.round_folder(self.checkpoints, latest)
        try:
            trees, facts = store.load(folder)
            return _state(trees, facts)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            remedy = f"delete it to continue from round {saved[-2]}" if len(saved) > 1 else "start a new run"
            raise CheckpointError(f"{folder} is not a complete checkpoint ({error}); {remedy}") from error

    @contextmanager
    def spool(self) -> Iterator[Path]:
        """Make a folder for updates that wait on disk and remove it on exit; load_state() removes it after a crash.

        The files in it have no names, but some network file systems keep them under hidden ones.
        """
        folder = self.path / SPOOL
        with store.writing(folder):
            folder.mkdir(exist_ok=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(self, state: ServerState, record: Json) -> None:
        """Write a round: first its line of metrics, then the checkpoint, which makes the round count.

        Raises:
            CheckpointError: The disk refused either; the line of metrics is removed again.
        """
        metrics = self.path / "metrics.jsonl"
        size = metrics.stat().st_size if metrics.is_file() else 0
        trees = {f"adapters/{n}": t for n, t in state.adapters.items()}
        trees |= {f"memory/{n}": t for n, t in state.memory.items()}
        facts = {
            f.name: getattr(state, f.name) for f in fields(state) if f.name not in ("adapters", "memory")
        }
        # metrics first: a line without its checkpoint is dropped when the run is resumed, see load_state
        try:
            store.append(metrics, json.dumps(record, sort_keys=True) + "\n")
            store.save(store.round_folder(self.checkpoints, state.round), trees, facts)
        except CheckpointError:
            os.truncate(metrics, size)
            raise
        store.prune(self.checkpoints, set(store.rounds(self.checkpoints)[-KEPT_CHECKPOINTS:]))

    def metrics(self) -> list[Json]:
        """The records of all rounds so far; an unterminated last line, left by a crash, is ignored."""
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
        """The contents of manifest.json; {} if there is none yet."""
        return read_json(self.path / "manifest.json", {})

    def write_manifest(self, **facts: Json) -> None:
        """Merge facts into the manifest and update the totals computed from the metrics."""
        records = self.metrics()
        seconds = [r.get("seconds", {}) for r in records]
        manifest = {**self.manifest(), **facts}
        loads = Counter({c: client.get("loads", 0) for c, client in manifest.get("clients", {}).items()})
        for record in records:
            loads.update(record.get("loads", {}))
        totals = {
            "base_loads": dict(loads),
            "participation": {str(r["round"]): r["participants"] for r in records if r["round"]},
            "failed": {str(r["round"]): r["failed"] for r in records if r["failed"]},
            "bytes": {
                "up": sum(r.get("bytes_up", 0) for r in records),
                "down": sum(r.get("bytes_down", 0) for r in records),
            },
            "seconds": sum(s.get("total", s.get("evaluate", 0.0)) for s in seconds),
        }
        text = json.dumps({**manifest, **totals}, indent=2, sort_keys=True)
        store.write_text(self.path / "manifest.json", text + "\n")


def _state(trees: Mapping[str, Tree], facts: Json) -> ServerState:
    """Return the state that a checkpoint holds. Raises KeyError, TypeError or ValueError if it is not complete."""
    parts: dict[str, dict[str, Tree]] = {"adapters": {}, "memory": {}}
    for name, tree in trees.items():
        kind, tree_name = name.split("/", 1)
        parts[kind][tree_name] = tree
    if "recall" not in facts:  # before 0.2.0 the loop's own fields were among those of the algorithm
        inner = dict(facts["facts"])
        inner["pooled"] = inner.pop("pool", {})
        loop = {"rounds": 0, "votes": False, "clients": 0, "examples": {}, "recall": {}, "pooled": {}}
        facts = {
            **facts,
            **{name: inner.pop(name, default) for name, default in loop.items()},
            "facts": inner,
        }
    by_client = {name: {int(c): n for c, n in facts[name].items()} for name in ("examples", "recall")}
    return ServerState(**parts, **{**facts, **by_client})


def is_held(folder: Path) -> bool:
    """Whether a process holds the lock of this run; also True on a file system without locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _nested(flat: Json) -> Json:
    """Sections of keys, from dotted keys."""
    nested: Json = {}
    for key, value in flat.items():
        section, name = key.split(".", 1)
        nested.setdefault(section, {})[name] = value
    return nested
