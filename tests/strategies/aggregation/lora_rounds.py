"""Rounds of lora.aggregation over three clients, without a model."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from core.config import parse
from core.factors import modules
from core.tree import Tree, norm
from core.types import Client, Order, ServerState, Update
from strategies.aggregation.fold import Merged
from strategies.base import Strategy
from strategies.fedavg import FedAvg

R, ALPHA = 4, 6
SPOOL = Path(tempfile.gettempdir())
EVERYONE = [Client(c, 10 * c + 10) for c in range(3)]
SHAPES = {"x": (6, 5), "y": (12, 9)}  # (out, in): 3 clients of rank 4 exceed the ranks that x has
FOUR = ("separate", "ffa", "rolora", "fedsa")
PRODUCTS = ("fedex", "flora", "flexlora")


def strategy(aggregation: str, name: str = "fedavg", **keys: object) -> FedAvg:
    flat = {"lora.aggregation": aggregation, "lora.r": R, "lora.alpha": ALPHA, "strategy.name": name}
    return parse(
        {**flat, **{k.replace("__", ".").replace("_", "-"): v for k, v in keys.items()}}
    ).build_strategy()  # type: ignore[dict-item]


def adapter(seed: int, size: float = 1.0) -> Tree:
    rng, out = torch.Generator().manual_seed(seed), {}
    for name, (rows, columns) in SHAPES.items():
        out[f"{name}.lora_A.weight"] = torch.randn(R, columns, generator=rng)
        out[f"{name}.lora_B.weight"] = size * torch.randn(rows, R, generator=rng)
    return out


def begin(chosen: Strategy, x: Tree) -> ServerState:
    return replace(chosen.init({"global": x}, 7), clients=len(EVERYONE))


def trained(chosen: Strategy, order: Order, rnd: int) -> Update:
    """An update as a client makes it by the rule: what trains moves, what is shared is sent."""
    rule, rng = chosen.local_rule(), torch.Generator().manual_seed(100 * rnd + order.client)
    delta = {
        n: 0.1 * torch.randn(t.shape, generator=rng)
        for n, t in order.trees[order.adapter].items()
        if rule.shares(n, rnd)
    }
    trees = {name: {n: t.clone() for n, t in delta.items()} for name in rule.sends}
    examples = next(c.examples for c in EVERYONE if c.id == order.client)
    return Update(
        order.client, examples, order.adapter, trees, {f"norm/{n}": norm(t) for n, t in trees.items()}
    )


def a_round(
    chosen: Strategy, state: ServerState, rnd: int
) -> tuple[ServerState, list[Order], list[Update], dict]:
    orders = chosen.plan_train(state, rnd, EVERYONE)
    updates, fold = [trained(chosen, order, rnd) for order in orders], chosen.fold(state, rnd, SPOOL)
    for update in updates:
        fold.add(update)
    after, metrics = chosen.merge_train(state, rnd, Merged(tuple(updates), fold.result()))
    return replace(after, round=rnd), orders, updates, metrics


def matrices(tree: Tree, scale: float = 1.0) -> dict[str, torch.Tensor]:
    return {n: scale * b.double() @ a.double() for n, (b, a) in modules(tree).items()}
