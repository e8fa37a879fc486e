"""Clients that are plain functions, behind a Grid in this process."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from flwr.app import Message

from core import wire
from core.sections import FaultConfig
from core.types import OrderOption, Update
from strategies.fedavg import FedAvg
from strategies.rounds.session import RunContext
from tests.loopback import Loopback

X = {"w": torch.zeros(2)}
CONTEXT = RunContext(
    run="r",
    base="",
    simulation=True,
    min_available_nodes=3,
    fraction_train=1.0,
    sampling="uniform",
    fault=FaultConfig(round_deadline_s=0.3, start_timeout_s=0.3, max_delta_norm=100.0),
    eval_every=1,
    spool=Path(tempfile.gettempdir()),
    task_order_options={"seen": OrderOption(float), "kl": OrderOption(float)},
    task_options=lambda pooled: {"seen": pooled.get("n", 0.0), "kl": pooled.get("kl_sum", -1.0)},
    on_hello=lambda hellos: None,
    on_round=lambda state, record: None,
)


def hello(client: int) -> dict:
    more = {"data": "", "skipped": {}, "truth": None}
    return {"client": client, "examples": client + 1, "row_counts": {"n": 1.0}, **more}


def answer(node: int, message: Message, *, bad=None) -> Message | None:
    """Node 10 + c is client c: it moves by (c + 1, round) / 10 and holds c + 1 examples."""
    client = node - 10
    if message.metadata.message_type == "query.hello":
        return Message(wire.encode_facts(hello(client)), reply_to=message)
    order = wire.decode_order(message.content)
    metrics = {"loss": 0.5, "sum/kl_sum": 2.0}
    if message.metadata.message_type == "evaluate":
        return Message(
            wire.encode_update(Update(client, 4, "global", {}, {"acc": client / 10})), reply_to=message
        )
    delta = {"w": torch.tensor([(client + 1) / 10, order.round / 10])}
    update = Update(client, client + 1, "global", {"delta": delta}, metrics)
    if bad and client == 1:
        return bad(message, update)
    return Message(wire.encode_update(update), reply_to=message)


def federate(rounds: int, *, bad=None, arrival=list, state=None, kept=None, **changes):
    records, states = [], kept if kept is not None else []
    strategy = FedAvg()
    start = state or strategy.init({"global": X}, 7)
    grid = Loopback([10, 11, 12], lambda n, m: answer(n, m, bad=bad), arrival)
    on_round = lambda s, r: (states.append(s), records.append(r))  # noqa: E731
    strategy.run(grid, replace(CONTEXT, on_round=on_round, **changes), start, rounds)
    return states, records
