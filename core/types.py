"""The messages between server and clients, and the server's state."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.tree import Tree

Scalar = bool | int | float | str
Json = Any  # any JSON value
Metrics = dict[str, float]  # a metric without data is absent, never 0


@dataclass(frozen=True)
class Client:
    """A connected client."""

    id: int  # data partition: stable across restarts, unlike Flower's node id
    examples: int  # training rows it holds


@dataclass(frozen=True)
class Order:
    """The server's message to one client in a round."""

    client: int
    trees: Mapping[str, Tree]  # adapters by name, and trees that the algorithm adds ("control")
    adapter: str = "global"  # name of the one to train or score
    recall: int = 0  # round whose private memory to load; 0: none
    knobs: Mapping[str, Scalar] = field(default_factory=dict)  # {"rnd": 3, ...}


@dataclass(frozen=True)
class Update:
    """A client's reply to a training or evaluation order."""

    client: int
    examples: int  # rows of the client, its weight in the mean
    adapter: str
    trees: Mapping[str, Tree]  # {"delta": after - before}; empty after an evaluation
    metrics: Metrics
    tokens: int = 0  # completion tokens in its rows; 0 after an evaluation
    kept: bool = False  # whether private memory was saved in this round; later orders recall it
    loads: int = 0  # how often the base model was loaded for this reply


@dataclass(frozen=True)
class ServerState:
    """Everything that the server remembers between rounds; a checkpoint stores exactly this."""

    seed: int
    round: int  # last completed; 0 before the first
    adapters: Mapping[str, Tree]  # {"global": ...} or {"c0": ..., "c1": ...}
    memory: Mapping[str, Tree] = field(default_factory=dict)  # {"global.m": ..., "control": ...}
    facts: Mapping[str, Json] = field(default_factory=dict)  # {"recall": {"3": 7}}
