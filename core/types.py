"""The messages between server and clients, and the server's state."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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
class HelloRequest:
    """The server's first message to a node: which run asks, and with which base model."""

    run: str  # name of the run folder
    base: str = ""  # fingerprint of the server's base model; "": any
    simulation: bool = False  # whether the clients are processes of this machine, whose data may be named


@dataclass(frozen=True)
class OrderOption:
    """An option that a task or a strategy adds to orders, declared so that a site's policy can check it."""

    type: type[bool] | type[int] | type[float] | type[str]
    kinds: tuple[Literal["train", "evaluate"], ...] = ("train", "evaluate")  # of the orders that may have it
    own_rows: bool = True  # False: it asks for rows of other clients, which a site with a policy refuses


@dataclass(frozen=True)
class Order:
    """The server's message to one client in a round.

    A strategy chooses client, trees, adapter, compare and options; the round loop sets the other fields.
    """

    client: int
    trees: Mapping[str, Tree]  # adapters by name, and trees that the algorithm adds ("control")
    adapter: str = "global"  # name of the one to train or score
    compare: tuple[str, ...] = ()  # adapters whose loss on the comparison rows is wanted
    options: Mapping[str, Scalar] = field(default_factory=dict)  # declared by the task and the strategy
    run: str = ""  # name of the run folder
    base: str = ""  # fingerprint of the server's base model; "": any
    round: int = 0
    recall: int = 0  # round whose private memory to load; 0: none
    clients: int = 0  # of the federation so far
    cohort: int = 0  # orders of this exchange


@dataclass(frozen=True)
class Update:
    """A client's reply to a training or evaluation order."""

    client: int
    examples: int  # rows of the client, its weight in the mean
    adapter: str
    trees: Mapping[str, Tree]  # {"delta": after - before}; empty after an evaluation
    metrics: Metrics
    tokens: int = 0  # completion tokens in its rows; 0 after an evaluation
    saved_memory: bool = False  # whether private memory was saved in this round; later orders recall it
    loads: int = 0  # how often the base model was loaded for this reply


@dataclass(frozen=True)
class ServerState:
    """Everything that the server remembers between rounds; a checkpoint stores exactly this.

    A strategy's hooks return new adapters, memory and facts; the round loop sets the other fields.
    """

    seed: int
    round: int  # last completed; 0 before the first
    adapters: Mapping[str, Tree]  # {"global": ...} or {"c0": ..., "c1": ...}
    memory: Mapping[str, Tree] = field(default_factory=dict)  # {"global.m": ..., "control": ...}
    facts: Mapping[str, Json] = field(default_factory=dict)  # of the algorithm: {"route": {"3": "c1"}}
    rounds: int = 0  # planned for the run
    votes: bool = False  # whether several adapters can vote on which answer is better
    clients: int = 0  # the largest number of clients so far
    examples: Mapping[int, int] = field(default_factory=dict)  # training rows of every client so far
    recall: Mapping[int, int] = field(default_factory=dict)  # latest round of each client's private memory
    pooled: Metrics = field(default_factory=dict)  # sums over the updates of the last round
