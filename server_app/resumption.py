"""Rules for resuming a run: which keys may change, and how the manifest records the changes."""

from pathlib import Path

from core.errors import CheckpointError
from core.sections import Config, may_change
from core.types import Json
from server_app.report.reading import read_config

# schedules over all rounds of a run, with the value that makes each independent of the number of rounds
SCHEDULES = {
    "train.lr-schedule": "constant",
    "train.total-epochs": 0.0,
    "strategy.server-lr-schedule": "constant",
}


def check_resumable(config: Config, path: Path, *, completed: int) -> None:
    """Raise CheckpointError if the run in `path`, with `completed` rounds, cannot continue with this configuration."""
    old, _ = read_config(path)
    new = dict(config.flat)
    changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    if refused := [k for k in changed if not may_change(k)]:
        changes = ", ".join(f"{k} was {old.get(k)!r} and is {new.get(k)!r}" for k in refused)
        raise CheckpointError(f"{path.name} cannot be resumed with another configuration: {changes}")
    scheduled = [k for k, constant in SCHEDULES.items() if new.get(k) != constant]
    if scheduled and "run.num-server-rounds" in changed:
        raise CheckpointError(
            f"{path.name} was planned for run.num-server-rounds = {old['run.num-server-rounds']} and cannot be "
            f"extended to {new['run.num-server-rounds']}: {scheduled[0]} = {new[scheduled[0]]!r} depends on the "
            "number of rounds; start a new run"
        )
    if (rounds := config.run.num_server_rounds) < completed:
        raise CheckpointError(
            f"{path.name} has completed {completed} rounds, more than run.num-server-rounds = {rounds}: set "
            f"it to {completed} or more, or start a new run"
        )


def extend_plans(plans: list[Json] | None, old: Json, config: Config, completed: int) -> list[Json]:
    """The plans of a run, with the plan of this resumption if it changes a key.

    plans: None before the first resumption. old: the recorded keys. completed: rounds before this resumption.
    """
    changed = {
        key: value
        for key, value in config.flat
        if old.get(key) != value and key not in ("run.resume", "run.dir")
    }
    plans = plans or [{"after": 0, "rounds": old.get("run.num-server-rounds")}]
    plan = {"after": completed, "rounds": config.run.num_server_rounds, "changed": changed}
    return [*plans, plan] if changed and plans[-1] != plan else plans
