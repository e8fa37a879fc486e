"""Compare selectors: one for all clients, several, one per client, and one on all rows; accuracy and cost.

    python -m benchmarks.selection [KEY=VALUE ...] [--seeds 1 2 3] [--data FILE.jsonl.gz --model FOLDER]

Every cell is one `accord run` with the same clients, rounds and steps per client. FedBiscuit also sends bytes to
compare its selectors; `fedbis, bytes` is FedBis with so many more rounds that it sends as many bytes as FedBiscuit.
Personal: accuracy on each client's held-out pairs, in both orders, of the selector that the client would use. See
benchmarks/README.md.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.baselines import federation, interval
from benchmarks.options import options
from core.config import defaults
from core.plugins import default_options, plugin
from server_app.report.headline import headline
from server_app.report.reading import Run
from server_app.report.stats import CHOICE, LONGER, TOGETHER, first_and_last, planted, worst

BYTES = "fedbis, bytes"
METHODS: Mapping[str, tuple[str, ...]] = {
    "local": ("strategy.name=local",),
    "centralized": ("strategy.name=centralized",),
    "fedbis": ("strategy.name=fedbis",),
    "fedbiscuit, paper": (
        "strategy.name=fedbiscuit",
        "strategy.server-rule=auto",
        "strategy.grouping=greedy",
        "strategy.warmup=sequential",
    ),
    "fedbiscuit": ("strategy.name=fedbiscuit", "strategy.warmup=interleaved"),
    BYTES: ("strategy.name=fedbis",),
}
COMMON = ("strategy.warmup-rounds=1", "strategy.regroup-every=2", "strategy.grouping-fraction=0.25")
TOY = ("data.types=3", "data.type-weight=6.0", "data.type-differs=0.6", "data.rows-per-client=96")
FILE = ("data.source=jsonl", "train.max-length=512")
CLIENTS = 12


def main() -> None:
    parser = options(__doc__, "passed on to accord run")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--data", default="toy", help="toy, or a JSON lines file of pairs with client_id")
    parser.add_argument("--model", default="toy-judge", help="model.name of every run")
    parser.add_argument("--clients", type=int, default=CLIENTS)
    args = parser.parse_args()
    if BYTES in args.methods and not {"fedbis", "fedbiscuit"} <= {*args.methods}:
        parser.error(f"--methods {BYTES!r} needs fedbis and fedbiscuit, since it compares their bytes")
    source = TOY if args.data == "toy" else (*FILE, f"data.path={Path(args.data).resolve()}")
    world = [
        *source,
        *COMMON,
        f"model.name={args.model}",
        f"federation.num-supernodes={args.clients}",
        *args.settings,
    ]
    cells: dict[str, list[Cell]] = {}
    for seed in args.seeds:
        finished: dict[str, Cell] = {}
        for method in sorted(args.methods, key=list(METHODS).index):
            keys = METHODS[method]
            common = [
                setting for setting in world if applies(setting, keys[0].removeprefix("strategy.name="))
            ]
            settings = [f"run.seed={seed}", "task.name=selector", "eval.every=0", *keys, *common]
            if method == BYTES:
                settings.append(f"run.num-server-rounds={same_bytes(finished)}")
            finished[method] = cell(federation(settings))
            cells.setdefault(method, []).append(finished[method])
            print(f"seed {seed}, {method}: {finished[method].summary()}", flush=True)
    table(cells)


def applies(setting: str, strategy: str) -> bool:
    """Whether a setting applies to a strategy: false for options of FedBiscuit that the strategy does not have."""
    key = setting.split("=")[0].removeprefix("strategy.")
    of_fedbiscuit, of_strategy = (
        default_options(plugin("strategies", name)) for name in ("fedbiscuit", strategy)
    )
    return key not in of_fedbiscuit or key in of_strategy


@dataclass(frozen=True)
class Cell:
    """One run: its scores by name, in percent, without those that were not measured; and its cost."""

    scores: Mapping[str, float]
    rounds: int
    steps: int  # optimiser steps of all clients together
    up: int  # bytes
    down: int

    def summary(self) -> str:
        scores = ", ".join(f"{name} {value:.1f}" for name, value in self.scores.items())
        return f"{scores}; {self.steps} steps, {self.up / 1e6:.1f} MB up, {self.down / 1e6:.1f} MB down"


def cell(run: Run) -> Cell:
    base, last = first_and_last(run, CHOICE)
    assert base is not None, "the base is scored before the first round"
    assert last is not None, "the last round is scored"
    low = worst(last.eval, CHOICE)
    scores = {
        "personal": last.eval.mean.get(CHOICE),
        "worst": low[1] if low else None,
        "population": last.eval.mean.get(TOGETHER),
        "base": base.eval.mean.get(CHOICE),
        "longer": last.eval.mean.get(LONGER),
        **{e.key: e.value for e in headline(run) if e.key in ("purity", "rand") and planted(run)},
    }
    local_steps = int(run.config.get("train.local-steps", defaults()["train.local-steps"]))
    trained = sum(len(r.participants) for r in run.records)
    if run.config["strategy.name"] == "centralized":  # one client takes the steps of all
        trained *= len(run.manifest["clients"])
    return Cell(
        {name: 100 * value for name, value in scores.items() if value is not None},
        run.completed,
        local_steps * trained,
        sum(r.bytes_up or 0 for r in run.records),
        sum(r.bytes_down or 0 for r in run.records),
    )


def same_bytes(cells: Mapping[str, Cell]) -> int:
    """The number of rounds after which FedBis has sent and received as many bytes as FedBiscuit."""
    fedbis, fedbiscuit = cells["fedbis"], cells["fedbiscuit"]
    return round(fedbis.rounds * (fedbiscuit.up + fedbiscuit.down) / (fedbis.up + fedbis.down))


def table(cells: Mapping[str, list[Cell]]) -> None:
    """Print means over the seeds, with 95 % intervals (t) for several seeds."""
    names = list(
        dict.fromkeys(name for by_seed in cells.values() for cell in by_seed for name in cell.scores)
    )
    print("\n| % | " + " | ".join(names) + " | client steps | MB up | MB down |")
    print("|---" * (len(names) + 4) + "|")
    for method, by_seed in cells.items():
        columns = []
        for name in names:
            values = [c.scores[name] / 100 for c in by_seed if name in c.scores]
            columns.append(interval(values).strip() if values else "-")
        cost = [statistics.mean(getattr(c, name) for c in by_seed) for name in ("steps", "up", "down")]
        columns += [f"{cost[0]:.0f}", f"{cost[1] / 1e6:.1f}", f"{cost[2] / 1e6:.1f}"]
        print(f"| {method} | " + " | ".join(columns) + " |")


if __name__ == "__main__":
    main()
