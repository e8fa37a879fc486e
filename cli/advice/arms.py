"""What `accord advise` runs: the arms, their keys at equal steps, and how far each has come in its folder."""

import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import tomli_w

from cli.advice.conflict import clustered, read_conflict
from cli.advice.output import write_advice
from cli.advice.recommend import CLUSTERS, FEDAVG, FEDPDPO, FINISH, LOCAL, NAMES, too_few
from core import store
from core.config import defaults, parse, without_effect
from core.errors import ConfigError
from core.files import read_json
from core.types import Scalar
from server_app.report import console
from server_app.report.reading import ASKED, read_run
from server_app.report.stats import MIN_CLUSTERS

Keys = dict[str, Scalar]
FINISH_ROUNDS = 2  # of finish's rounds, spent at the end and alone
SOFT = 0.5  # strategy.soft-balance where the map's clusters are of unequal size


@dataclass(frozen=True)
class Arm:
    """One option as a run. `keys` choose its plugins; `own` are its defaults, which a user's key
    replaces."""

    name: str
    keys: Mapping[str, Scalar]
    own: Mapping[str, Scalar]


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
}  # in the order they run: the map of the first says how many clusters there are


def open_folder(asked: Mapping[str, Scalar], parent: Path) -> Path:
    """A new `advice-<time>/` that remembers what was asked for."""
    stem = datetime.now(UTC).strftime("advice-%Y%m%d-%H%M%S")
    names = [stem, *(f"{stem}-{attempt}" for attempt in range(2, 100))]
    folder = next(parent / name for name in names if not (parent / name).exists())
    with store.writing(folder):
        folder.mkdir(parents=True)
    store.write_text(folder / ASKED, tomli_w.dumps(dict(asked)))
    return folder


def arm_keys(arm: Arm, asked: Mapping[str, Scalar], groups: list[int] | None = None) -> Keys:
    """The keys of an arm's run: what was asked for as far as the arm reads it, at the same steps for every client.

    finish gives the steps of its last rounds to the clients alone. groups: the clusters of the map; two for as long as
    it is not known.
    """
    given = {k: v for k, v in asked.items() if k not in without_effect(arm.keys, asked)}
    keys = {"eval.every": 0, **arm.own, **given, **arm.keys}
    value = {**defaults(), **keys}
    rounds, steps = int(value["run.num-server-rounds"]), int(value["train.local-steps"])
    if arm.name == FINISH:
        alone = int(keys.setdefault("strategy.finish-steps", min(FINISH_ROUNDS, rounds - 1) * steps))
        keys["run.num-server-rounds"] = rounds - -(-alone // steps)
    elif "strategy.finish-steps" in keys:
        del keys["strategy.finish-steps"]
    if arm.name == CLUSTERS:
        warmup = int(keys["strategy.warmup-rounds"])
        keys.setdefault("strategy.selectors", max(2, min(len(set(groups or [])), (rounds - 1) // warmup)))
        sizes = [groups.count(g) for g in set(groups)] if groups else []
        if len(sizes) > 1 and max(sizes) - min(sizes) > 1:
            keys.setdefault("strategy.soft-balance", SOFT)
    return keys


def check(asked: Mapping[str, Scalar]) -> None:
    """Refuse before anything runs: a key that advise sets, one that no arm reads, steps that cannot be equal."""
    for key in ("strategy.name", "task.name", "run.resume"):
        if asked.get(key, defaults()[key]) != defaults()[key]:
            raise ConfigError(
                f"{key} = {asked[key]!r}: `accord advise` chooses it for each of its runs; leave it out"
            )
    for key in ("train.local-epochs", "train.total-epochs"):
        if asked.get(key):
            raise ConfigError(
                f"{key} = {asked[key]!r}: `accord advise` compares at the same steps for every client; "
                "use train.local-steps"
            )
    rounds = int(asked.get("run.num-server-rounds", defaults()["run.num-server-rounds"]))
    if rounds < 3:
        raise ConfigError(
            f"run.num-server-rounds = {rounds}: `accord advise` needs 3, the clusters' warm-up among them"
        )
    for key in ("train.local-steps", "strategy.warmup-rounds"):
        if int(asked.get(key, defaults()[key])) < 1:
            raise ConfigError(f"{key} must be above 0, got {asked[key]!r}")
    lost = [without_effect(arm.keys, asked) for arm in ARMS.values()]
    if nowhere := sorted(set.intersection(*lost)):
        raise ConfigError(
            f"{nowhere[0]} = {asked[nowhere[0]]!r} has no effect with any of the runs of `accord advise`"
        )
    if int(arm_keys(ARMS[FINISH], asked)["run.num-server-rounds"]) < 1:
        raise ConfigError(
            f"strategy.finish-steps = {asked['strategy.finish-steps']!r} come out of the {rounds} rounds and "
            "leave no round to federate in; lower it"
        )
    for arm in ARMS.values():
        parse(arm_keys(arm, asked))


def foretold(federation: Mapping[str, Scalar]) -> list[str]:
    """What is known before anything runs: a simulation of a few clients will show no difference."""
    clients = int(federation["num-supernodes"])
    if federation["superlink"] or clients >= MIN_CLUSTERS:
        return []
    return [f"advise   {too_few(clients)} The runs are measured all the same, without a recommendation."]


def run_of(folder: Path, arm: Arm) -> Path | None:
    """The run of an arm, finished or not; what a crash left before there was a configuration is cleared away."""
    found = [path for path in sorted((folder / arm.name).glob("*")) if path.is_dir()]
    for path in found:
        if not (path / "config.toml").is_file():
            shutil.rmtree(path)
    return next((path for path in found if path.is_dir()), None)


def is_finished(run: Path) -> bool:
    manifest = run / "manifest.json"
    return read_json(manifest, {}).get("status") == "finished"


def run_arms(folder: Path, asked: Mapping[str, Scalar], start: Callable[[Keys], int]) -> int:
    """Run what has not finished yet, then write the report; `start` runs these keys and gives an exit code, and the
    first that is not 0 ends it."""
    groups: list[int] = []
    for number, arm in enumerate(ARMS.values(), 1):
        run = run_of(folder, arm)
        if run is None or not is_finished(run):
            console.say(
                f"\nadvise   {number} of {len(ARMS)}: {NAMES[arm.name]}{', continued' if run else ''}"
            )
            here: Keys = {"run.dir": str(folder / arm.name), **({"run.resume": str(run)} if run else {})}
            if code := start({**arm_keys(arm, asked, groups), **here}):
                console.say(f"accord: continue the advice with: accord advise {shlex.quote(str(folder))}")
                return code
            run = run_of(folder, arm)
            assert run, arm
        if arm.name == FEDAVG:
            groups = clustered(read_conflict(run).apart)
    runs = {name: read_run(found) for name, arm in ARMS.items() if (found := run_of(folder, arm))}
    for line in write_advice(folder, runs):
        console.say(line)
    return 0
