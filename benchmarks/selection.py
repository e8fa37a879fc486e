"""One selector, several, each client alone, all rows in one place: who picks the better answer, at what cost?

    python -m benchmarks.selection [KEY=VALUE ...] [--seeds 1 2 3] [--data FILE.jsonl.gz --model FOLDER]

Every cell is one `accord run` with the same clients, rounds and steps of each client: equal client steps. What
FedBiscuit sends to compare its selectors comes on top, so that `fedbis, bytes` is FedBis with as many rounds more as
make its bytes those of FedBiscuit. Personal: held-out pairs of each client that the selector it would use itself picks
right, asked in both orders. See benchmarks/README.md.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.baselines import federation, interval
from benchmarks.options import options
from core.config import defaults
from core.plugins import knobs, plugin
from server_app.report.reading import Run
from server_app.report.stats import CHOICE, LONGER, TOGETHER, first_and_last, headline, planted, worst

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
        parser.error(f"--methods {BYTES!r} needs fedbis and fedbiscuit, whose bytes it compares")
    source = TOY if args.data == "toy" else (*FILE, f"data.path={Path(args.data).resolve()}")
    world = [
        *source,
        *COMMON,
        f"model.name={args.model}",
        f"federation.num-supernodes={args.clients}",
        *args.words,
    ]
    cells: dict[str, list[Cell]] = {}
    for seed in args.seeds:
        done: dict[str, Cell] = {}
        for method in sorted(args.methods, key=list(METHODS).index):
            own = METHODS[method]
            fitting = [word for word in world if fits(word, own[0].removeprefix("strategy.name="))]
            words = [f"run.seed={seed}", "task.name=selector", "eval.every=0", *own, *fitting]
            if method == BYTES:
                words.append(f"run.num-server-rounds={same_bytes(done)}")
            done[method] = cell(federation(words))
            cells.setdefault(method, []).append(done[method])
            print(f"seed {seed}, {method}: {done[method].told()}", flush=True)
    table(cells)


def fits(word: str, strategy: str) -> bool:
    """Whether the key says something to a strategy: FedBiscuit's own keys do not to those that lack them."""
    key = word.split("=")[0].removeprefix("strategy.")
    own, its = (knobs(plugin("strategies", name)) for name in ("fedbiscuit", strategy))
    return key not in own or key in its


@dataclass(frozen=True)
class Cell:
    """One run: its scores by name, in %, those that it has; and what they cost."""

    scores: Mapping[str, float]
    rounds: int
    steps: int  # optimiser steps of all clients together
    up: int  # bytes
    down: int

    def told(self) -> str:
        scores = ", ".join(f"{name} {value:.1f}" for name, value in self.scores.items())
        return f"{scores}; {self.steps} steps, {self.up / 1e6:.1f} MB up, {self.down / 1e6:.1f} MB down"


def cell(run: Run) -> Cell:
    base, last = first_and_last(run, CHOICE)
    assert base is not None, "the base is scored before the first round"
    assert last is not None, "the last round is scored"
    low = worst(last.eval, CHOICE)
    found = {
        "personal": last.eval.mean.get(CHOICE),
        "worst": low[1] if low else None,
        "population": last.eval.mean.get(TOGETHER),
        "base": base.eval.mean.get(CHOICE),
        "longer": last.eval.mean.get(LONGER),
        **{e.key: e.value for e in headline(run) if e.key in ("purity", "rand") and planted(run)},
    }
    each = int(run.config.get("train.local-steps", defaults()["train.local-steps"]))
    trained = sum(len(r.participants) for r in run.records)
    if run.config["strategy.name"] == "centralized":  # one takes the steps of all
        trained *= len(run.manifest["clients"])
    return Cell(
        {name: 100 * value for name, value in found.items() if value is not None},
        run.completed,
        each * trained,
        sum(r.bytes_up or 0 for r in run.records),
        sum(r.bytes_down or 0 for r in run.records),
    )


def same_bytes(done: Mapping[str, Cell]) -> int:
    """The rounds after which FedBis has sent and received what FedBiscuit did."""
    one, several = done["fedbis"], done["fedbiscuit"]
    return round(one.rounds * (several.up + several.down) / (one.up + one.down))


def table(cells: Mapping[str, list[Cell]]) -> None:
    """Means over the seeds, with 95 % intervals (t) where there are several."""
    names = list(dict.fromkeys(name for some in cells.values() for cell in some for name in cell.scores))
    print("\n| % | " + " | ".join(names) + " | client steps | MB up | MB down |")
    print("|---" * (len(names) + 4) + "|")
    for method, some in cells.items():
        shown = []
        for name in names:
            values = [c.scores[name] / 100 for c in some if name in c.scores]
            shown.append(interval(values).strip() if values else "-")
        cost = [statistics.mean(getattr(c, what) for c in some) for what in ("steps", "up", "down")]
        shown += [f"{cost[0]:.0f}", f"{cost[1] / 1e6:.1f}", f"{cost[2] / 1e6:.1f}"]
        print(f"| {method} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
