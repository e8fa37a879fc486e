"""The nouns that cross the network boundary, and what the server remembers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.tree import Tree

Scalar = bool | int | float | str
Json = Any  # what json.dumps takes
Metrics = dict[str, float]  # a metric without data is absent, never 0


@dataclass(frozen=True)
class Client:
    """Who is there."""

    id: int  # data partition; stable across restarts; never Flower's node id
    examples: int  # training rows it holds


@dataclass(frozen=True)
class Order:
    """Server to one client, one round."""

    client: int
    trees: Mapping[str, Tree]  # adapters by name, plus what the algorithm adds ("control")
    adapter: str = "global"  # which of them to train or score
    recall: int = 0  # private memory to start from: the round that wrote it; 0 = none
    knobs: Mapping[str, Scalar] = field(default_factory=dict)  # {"rnd": 3, ...}


@dataclass(frozen=True)
class Update:
    """Client to server, after training or after an evaluation."""

    client: int
    examples: int  # rows it holds: its weight
    adapter: str
    trees: Mapping[str, Tree]  # {"delta": after - before}; empty after an evaluation
    metrics: Metrics
    tokens: int = 0  # completion tokens in its rows; 0 after an evaluation
    kept: bool = False  # private memory was saved for this round; the server names it in later orders
    loads: int = 0  # how often the base model had to be loaded to answer


@dataclass(frozen=True)
class ServerState:
    """All that the server remembers; a checkpoint is exactly this."""

    seed: int
    round: int  # last completed; 0 before the first
    adapters: Mapping[str, Tree]  # {"global": ...} or {"c0": ..., "c1": ...}
    memory: Mapping[str, Tree] = field(default_factory=dict)  # {"global.m": ..., "control": ...}
    facts: Mapping[str, Json] = field(default_factory=dict)  # {"recall": {"3": 7}}
