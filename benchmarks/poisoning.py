"""Measure the benefit and cost of each robust mean when a fifth of the clients are hostile, on the toy world.

    python -m benchmarks.poisoning --seeds 1 2 3 [KEY=VALUE ...]

Ten clients of one preference type, the last two hostile: "flip" trains on pairs with chosen and rejected exchanged;
"scale" sends -10 times its delta. Every number is the honest clients' mean held-out accuracy (by log-probability)
after the last round. Sites and strategies are called one after the other, without a network.
"""

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.options import options
from cli.machine.settings import read_setting
from client_app.node import Node
from client_app.site import Site
from core.config import defaults, parse
from core.errors import AccordError
from core.sections import Config
from core.tree import norm, scale
from core.types import Client, Metrics, ServerState, Update
from strategies.aggregation.fold import Merged
from strategies.base import Strategy
from tasks.data.clients.rows import client_rows
from tasks.model.adapter import initial_adapter

CLIENTS, HOSTILE = 10, (8, 9)
ATTACKS = ("none", "flip", "scale")
DEFENCES: Mapping[str, dict[str, str | float]] = {
    "mean": {},
    "clip-norm": {"strategy.clip-norm": 1.0},
    "median": {"strategy.robust": "median"},
    "trimmed-mean": {"strategy.robust": "trimmed-mean"},
    "krum": {"strategy.robust": "krum"},
    "multi-krum": {"strategy.robust": "multi-krum"},
}
WORLD = {"data.types": 1, "strategy.min-available-nodes": CLIENTS, "run.num-server-rounds": 8}
Keys = Mapping[str, bool | int | float | str]


def main() -> None:
    parser = options(__doc__, "override the configuration")
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=ATTACKS)
    parser.add_argument("--defences", nargs="+", default=list(DEFENCES), choices=list(DEFENCES))
    args = parser.parse_args()
    try:
        table(
            args.seeds,
            args.attacks,
            args.defences,
            dict(read_setting(text, defaults()) for text in args.settings),
        )
    except AccordError as error:
        raise SystemExit(f"poisoning.py: {error}") from error


def table(seeds: Sequence[int], attacks: Sequence[str], defences: Sequence[str], keys: Keys) -> None:
    print("| honest clients' accuracy, % | " + " | ".join(attacks) + " |")
    print("|---" * (len(attacks) + 1) + "|")
    for defence in defences:
        cells = []
        for attack in attacks:
            scores = [100 * accuracy(attack, {**keys, **DEFENCES[defence], "run.seed": s}) for s in seeds]
            spread = f" ({min(scores):.1f} to {max(scores):.1f})" if len(scores) > 1 else ""
            cells.append(f"{statistics.mean(scores):.1f}{spread}")
        print(f"| {defence} | " + " | ".join(cells) + " |", flush=True)


@dataclass(frozen=True)
class World:
    """A federation whose last two clients are hostile."""

    config: Config
    attack: str
    home: Path

    def site(self, client: int) -> Site:
        node = Node(client, CLIENTS, state_dir=str(self.home))
        if self.attack == "flip" and client in HOSTILE:
            node = replace(node, data_path=str(self._flipped(client)))
        return Site(self.config, node)

    def _flipped(self, client: int) -> Path:
        path = self.home / f"flipped-{client}.jsonl"
        if not path.exists():
            rows = client_rows(self.config, self.config.task_choice.build(), client, CLIENTS).train
            flipped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
            path.write_text("".join(json.dumps(row) + "\n" for row in flipped))
        return path

    def attacked(self, update: Update) -> Update:
        """The update as it arrives at the server."""
        trees = dict(update.trees)
        if self.attack == "scale" and update.client in HOSTILE:
            trees["delta"] = scale(trees["delta"], -10.0)
        sizes = {f"norm/{name}": norm(tree) for name, tree in trees.items()}
        return replace(update, trees=trees, metrics={**update.metrics, **sizes})

    def round(
        self, strategy: Strategy, state: ServerState, rnd: int, common: Mapping[str, str]
    ) -> ServerState:
        orders = strategy.plan_train(state, rnd, [Client(c, 1) for c in range(CLIENTS)])
        fold, updates = strategy.fold(state, rnd, Path(tempfile.gettempdir())), []
        for order in orders:
            order = replace(order, **common, round=rnd, clients=CLIENTS, cohort=len(orders))
            update = self.attacked(self.site(order.client).train(order))
            fold.add(update)
            updates.append(replace(update, trees={}))
        state, _ = strategy.merge_train(state, rnd, Merged(tuple(updates), fold.result()))
        return replace(state, round=rnd)

    def honest(self, strategy: Strategy, state: ServerState, common: Mapping[str, str]) -> list[Metrics]:
        orders = strategy.plan_evaluate(state, state.round, [Client(c, 1) for c in range(CLIENTS)])
        return [
            self.site(o.client).evaluate(replace(o, **common, round=state.round)).metrics
            for o in orders
            if o.client not in HOSTILE
        ]


def accuracy(attack: str, keys: Keys) -> float:
    """Held-out accuracy of the honest clients after the last round, in 0..1."""
    config = parse({**WORLD, **keys})
    with tempfile.TemporaryDirectory() as home:
        world, strategy = World(config, attack, Path(home)), config.strategy_choice.build()
        base = world.site(0).base()
        common = {"run": "poisoning", "base": base.fingerprint}
        state = strategy.init({"global": initial_adapter(base, config.run.seed)}, config.run.seed)
        state = replace(state, clients=CLIENTS)
        for rnd in range(1, config.run.num_server_rounds + 1):
            state = world.round(strategy, state, rnd, common)
        return statistics.mean(m["logps/accuracies"] for m in world.honest(strategy, state, common))


if __name__ == "__main__":
    main()
