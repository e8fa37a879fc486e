"""The runs (arms) of `accord advise`: their keys, with equal steps for all, and their folders."""

import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import tomli_w

from cli.advice.conflict import find_clusters, read_conflict
from cli.advice.output import write_advice
from cli.advice.recommend import CLUSTERS, FEDAVG, FEDPDPO, FINISH, LOCAL, NAMES, too_few
from core import store
from core.config import defaults, parse, without_effect
from core.errors import ConfigError
from core.files import read_json
from core.types import Scalar
from server_app.report import console
from server_app.report.reading import ADVICE, read_run
from server_app.report.stats import MIN_CLUSTERS

Keys = dict[str, Scalar]
FINISH_ROUNDS = 2  # rounds of the option `finish` that each client trains alone at the end
SOFT_BALANCE = 0.5  # strategy.soft-balance if the map's clusters differ in size by more than one


@dataclass(frozen=True)
class Arm:
    """One option as a run. `keys` choose its plugins; `defaults` can be overridden by the user's keys."""

    name: str
    keys: Mapping[str, Scalar]
    defaults: Mapping[str, Scalar]


DPO = {"task.name": "dpo"}
ARMS = {
    arm.name: arm
    for arm in (
        Arm(FEDAVG, {**DPO, "strategy.name": "probe"}, {}),
        Arm(LOCAL, {**DPO, "strategy.name": "local"}, {}),
        Arm(FINISH, {**DPO, "strategy.name": "fedavg"}, {}),
        Arm(
            CLUSTERS,
            {**DPO, "strategy.name": "fedbiscuit"},
            {"strategy.server-rule": "cluster-norm", "strategy.warmup-rounds": 1},
        ),
        Arm(FEDPDPO, {"task.name": "pdpo", "strategy.name": "fedpdpo"}, {}),
    )
}  # in the order in which they run: the map of the first gives the number of clusters


def open_folder(request: Mapping[str, Scalar], parent: Path) -> Path:
    """Create `advice-<time>/` with the keys of the request in it."""
    stem = datetime.now(UTC).strftime("advice-%Y%m%d-%H%M%S")
    names = [stem, *(f"{stem}-{attempt}" for attempt in range(2, 100))]
    folder = next(parent / name for name in names if not (parent / name).exists())
    with store.writing(folder):
        folder.mkdir(parents=True)
    store.write_text(folder / ADVICE, tomli_w.dumps(dict(request)))
    return folder


def arm_keys(arm: Arm, request: Mapping[str, Scalar], clusters: list[int] | None = None) -> Keys:
    """The keys of an arm's run: those of the request that have an effect in it, with the same steps per client.

    The option `finish` trains the steps of its last rounds at each client alone. clusters: the cluster of each client,
    from the map; two clusters are assumed while it is unknown.
    """
    effective = {k: v for k, v in request.items() if k not in without_effect(arm.keys, request)}
    keys = {"eval.every": 0, **arm.defaults, **effective, **arm.keys}
    merged = {**defaults(), **keys}
    rounds, steps = int(merged["run.num-server-rounds"]), int(merged["train.local-steps"])
    if arm.name == FINISH:
        finish_steps = int(keys.setdefault("strategy.finish-steps", min(FINISH_ROUNDS, rounds - 1) * steps))
        # the rounds that finish_steps replace are rounded up
        keys["run.num-server-rounds"] = rounds - -(-finish_steps // steps)
    elif "strategy.finish-steps" in keys:
        del keys["strategy.finish-steps"]
    if arm.name == CLUSTERS:
        warmup = int(keys["strategy.warmup-rounds"])
        keys.setdefault("strategy.selectors", max(2, min(len(set(clusters or [])), (rounds - 1) // warmup)))
        sizes = [clusters.count(g) for g in set(clusters)] if clusters else []
        if len(sizes) > 1 and max(sizes) - min(sizes) > 1:
            keys.setdefault("strategy.soft-balance", SOFT_BALANCE)
    return keys


def check(request: Mapping[str, Scalar]) -> None:
    """Refuse a request before anything runs.

    Raises:
        ConfigError: A key that `accord advise` sets itself, one without effect in any arm, or unequal steps.
    """
    for key in ("strategy.name", "task.name", "run.resume"):
        if request.get(key, defaults()[key]) != defaults()[key]:
            raise ConfigError(
                f"{key} = {request[key]!r}: `accord advise` sets this key for each of its runs; remove it"
            )
    for key in ("train.local-epochs", "train.total-epochs"):
        if request.get(key):
            raise ConfigError(
                f"{key} = {request[key]!r}: `accord advise` gives every client the same number of steps; "
                "use train.local-steps"
            )
    rounds = int(request.get("run.num-server-rounds", defaults()["run.num-server-rounds"]))
    if rounds < 3:
        raise ConfigError(
            f"run.num-server-rounds = {rounds}: `accord advise` needs at least 3, including the warm-up of the clusters"
        )
    for key in ("train.local-steps", "strategy.warmup-rounds"):
        if int(request.get(key, defaults()[key])) < 1:
            raise ConfigError(f"{key} must be above 0, got {request[key]!r}")
    ineffective = [without_effect(arm.keys, request) for arm in ARMS.values()]
    if useless := sorted(set.intersection(*ineffective)):
        raise ConfigError(
            f"{useless[0]} = {request[useless[0]]!r} has no effect in any run of `accord advise`; remove it"
        )
    if int(arm_keys(ARMS[FINISH], request)["run.num-server-rounds"]) < 1:
        raise ConfigError(
            f"strategy.finish-steps = {request['strategy.finish-steps']!r} takes all of the {rounds} rounds and "
            "leaves none for federated training; lower it"
        )
    for arm in ARMS.values():
        parse(arm_keys(arm, request))


def early_warnings(federation: Mapping[str, Scalar]) -> list[str]:
    """Warnings before anything runs: a simulation of few clients gives no recommendation."""
    clients = int(federation["num-supernodes"])
    if federation["superlink"] or clients >= MIN_CLUSTERS:
        return []
    return [f"advise   {too_few(clients)} All runs are made, but there will be no recommendation."]


def run_of(folder: Path, arm: Arm) -> Path | None:
    """The folder of an arm's run, finished or not; folders without a configuration, left by a crash, are deleted."""
    runs = [path for path in sorted((folder / arm.name).glob("*")) if path.is_dir()]
    for path in runs:
        if not (path / "config.toml").is_file():
            shutil.rmtree(path)
    return next((path for path in runs if path.is_dir()), None)


def is_finished(run: Path) -> bool:
    """Whether the manifest of a run says that it has finished."""
    manifest = run / "manifest.json"
    return read_json(manifest, {}).get("status") == "finished"


def run_arms(folder: Path, request: Mapping[str, Scalar], start: Callable[[Keys], int]) -> int:
    """Run the arms that have not finished, then write the advice; returns an exit code.

    start: runs the given keys and returns an exit code; the first one that is not 0 is returned at once.
    """
    clusters: list[int] = []
    for number, arm in enumerate(ARMS.values(), 1):
        run = run_of(folder, arm)
        if run is None or not is_finished(run):
            console.say(
                f"\nadvise   {number} of {len(ARMS)}: {NAMES[arm.name]}{', continued' if run else ''}"
            )
            folder_keys: Keys = {
                "run.dir": str(folder / arm.name),
                **({"run.resume": str(run)} if run else {}),
            }
            if exit_code := start({**arm_keys(arm, request, clusters), **folder_keys}):
                console.say(f"accord: continue the advice with: accord advise {shlex.quote(str(folder))}")
                return exit_code
            run = run_of(folder, arm)
            assert run, arm
        if arm.name == FEDAVG:
            clusters = find_clusters(read_conflict(run).apart)
    runs = {name: read_run(run) for name, arm in ARMS.items() if (run := run_of(folder, arm))}
    for line in write_advice(folder, runs):
        console.say(line)
    return 0
