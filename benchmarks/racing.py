"""Measure what racing saves when clients compare adapters, and whether it changes groups, on the toy world.

    python -m benchmarks.racing --seeds 1 2 3 [KEY=VALUE ...]

There are twelve clients of three planted types. The first client of each type trains an adapter from its own initial
weights, then every client compares the three on its comparison rows: all of them on all rows, and by `strategy.race`.
Cost is scored rows x adapters and CPU time; the groups are the balanced ones with the lowest loss.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from benchmarks.options import options
from benchmarks.poisoning import Keys, read_setting
from client_app.node import Node
from client_app.site import Site
from core.config import parse
from core.sections import Config
from core.tree import Tree, add
from core.types import Metrics, Order
from strategies.rounds.grouping import exact
from tasks.model.adapter import initial_adapter

CLIENTS, TYPES = 12, 3
WORLD: Mapping[str, bool | int | float | str] = {
    "strategy.name": "fedbiscuit",
    "strategy.grouping-fraction": 0.5,
    "data.types": TYPES,
    "data.rows-per-client": 400,
    "eval.max-rows": 1,  # so that only the comparison takes time
    "train.local-steps": 100,
    "train.learning-rate": 6e-3,
}


def main() -> None:
    parser = options(__doc__, "override the configuration")
    parser.add_argument("--races", type=float, nargs="+", default=[3.0, 2.0])
    args = parser.parse_args()
    print("| seed | z | rows x adapters | CPU | same groups | clients of their own type |")
    print("|---|---|---|---|---|---|")
    for seed in args.seeds:
        measure(
            {**WORLD, **dict(read_setting(text) for text in args.settings), "run.seed": seed},
            seed,
            args.races,
        )


def measure(keys: Keys, seed: int, races: Sequence[float]) -> None:
    with tempfile.TemporaryDirectory() as home:
        config = parse(dict(keys))
        sites = [Site(config, Node(c, CLIENTS, state_dir=home)) for c in range(CLIENTS)]
        trees = {f"c{u}": trained(sites[u], config, f"c{u}") for u in range(TYPES)}
        compared(sites, trees, 0.0)  # fills the caches of tokens and reference log-probabilities
        full, cost, _ = compared(sites, trees, 0.0)
        for z in races:
            raced, cpu, scored = compared(sites, trees, z)
            right = np.mean([group == c % TYPES for c, group in enumerate(raced)])
            same = "yes" if raced == full else f"{sum(map(int.__ne__, raced, full))} differ"
            print(f"| {seed} | {z:g} | {scored:.0%} | {cpu / cost:.0%} | {same} | {right:.0%} |", flush=True)


def trained(site: Site, config: Config, name: str) -> Tree:
    start = initial_adapter(site.base(), config.run.seed, name)
    update = site.train(order_to(site, {name: start}, name))
    return add(start, update.trees["delta"])


def compared(sites: Sequence[Site], trees: Mapping[str, Tree], z: float) -> tuple[list[int], float, float]:
    """(group of each client, CPU seconds, share of rows x adapters scored)."""
    started, answers = time.process_time(), list[Metrics]()
    for site in sites:
        order = order_to(site, trees, next(iter(trees)))
        order = replace(order, compare=tuple(trees), options={"race": z} if z else {})
        answers.append(site.evaluate(order).metrics)
    seconds = time.process_time() - started
    losses = np.array([[a[f"loss/{name}"] for name in trees] for a in answers])
    return exact(losses), seconds, float(np.mean([a.get("race/scored", 1.0) for a in answers]))


def order_to(site: Site, trees: Mapping[str, Tree], adapter: str) -> Order:
    return Order(site.node.client, trees, adapter, run="racing", base=site.base().fingerprint, round=1)


if __name__ == "__main__":
    main()
