"""Replies that the round loop refuses: the round closes on the other clients, and the reason is named."""

import math
from dataclasses import replace

import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict

from core import framing, wire
from core.errors import ConfigError, TreeMismatch
from core.types import Update
from strategies.fedavg import FedAvg
from tests.loopback import Loopback
from tests.strategies.plain_clients import CONTEXT, X, answer, federate, hello


def reply(make):
    return lambda message, update: Message(wire.encode_update(make(update)), reply_to=message)


def delta(**trees):
    return lambda u: replace(u, trees={"delta": trees})


def leaking(message, update):
    """What an honest client's encoder refuses: the name is put in afterwards."""
    tree = update.trees["delta"]
    with pytest.raises(TreeMismatch, match=r"delta: 'private.w' is private"):
        wire.encode_update(delta(**tree, **{"private.w": torch.zeros(2)})(update))
    record = wire.encode_update(delta(**tree, **{"secret_.w": torch.zeros(2)})(update))
    record["facts"]["layouts"] = record["facts"]["layouts"].replace("secret_.w", "private.w")
    return Message(record, reply_to=message)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda m, u: None, "no answer within 0.3 s"),
        (lambda m, u: Message(Error(0, "boom"), reply_to=m), "Flower: boom"),
        (
            lambda m, u: Message(framing.encode_failure(framing.Failure("DataError", "row 3")), reply_to=m),
            "DataError: row 3",
        ),
        (reply(delta(w=torch.tensor([math.nan, 0.0]))), "delta holds NaN or Inf"),
        (reply(delta(w=torch.zeros(3))), "'w' has shape (3,), expected (2,)"),
        (reply(delta(v=torch.zeros(2))), "names differ"),
        (reply(delta(w=torch.tensor([1e30, 1e30]))), "NaN or Inf, or is too large for float32"),
        (reply(delta(w=torch.tensor([math.inf, 0.0]))), "delta holds NaN or Inf"),
        (
            reply(delta(w=torch.tensor([0.0, 101.0]))),
            "the norm of its delta is 101, fault.max-delta-norm = 100",
        ),
        (reply(delta(w=torch.zeros(2), v=torch.zeros(2))), "names differ"),
        (reply(lambda u: replace(u, trees={})), "trees [], expected ['delta']"),
        (reply(lambda u: replace(u, trees={**u.trees, "more": {}})), "trees ['delta', 'more']"),
        (reply(lambda u: replace(u, examples=-5)), "-5 examples"),
        (reply(lambda u: replace(u, examples=10**12)), "fault.max-examples = 100000000"),
        (reply(lambda u: replace(u, examples=3)), "3 examples, but its hello reported 2"),
        (reply(lambda u: replace(u, tokens=-1)), "-1 tokens"),
        (reply(lambda u: replace(u, metrics={"loss": math.nan})), "metric 'loss' is nan"),
        (reply(lambda u: replace(u, metrics={"loss": "low"})), "metric 'loss' is a str, expected"),
        (reply(lambda u: replace(u, metrics={"loss": 10**308})), "metric 'loss' is a int, expected"),
        (reply(lambda u: replace(u, client=2)), "the reply names client 2"),
        (reply(lambda u: replace(u, adapter="mine")), "the reply names client 1, adapter 'mine'"),
        (lambda m, u: Message(wire.encode_facts({"client": 1}), reply_to=m), "unreadable reply"),
        (lambda m, u: leaking(m, u), "private tensor 'private.w' in delta"),
    ],
)
def test_a_bad_reply_is_left_out_and_named(bad, reason):
    """The round closes on clients 0 and 2: (1*.1 + 3*.3)/4."""
    states, records = federate(1, bad=bad)
    assert reason in records[1]["failed"]["1"]
    assert records[1]["participants"] == [0, 2]
    assert states[-1].adapters["global"]["w"][0].item() == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"examples": -3}, "examples = -3"),
        ({"examples": 10**15}, "from 0 to 100000000"),
        ({"client": "one"}, "client = 'one'"),
        ({"row_counts": {"n": math.nan}}, "expected finite numbers by name"),
        ({"row_counts": [3]}, "expected finite numbers by name"),
        ({"row_counts": {"n": 10**400}}, "expected finite numbers by name"),
    ],
)
def test_a_hello_that_lies_is_refused(lie, reason):
    def lying(node, message):
        if node == 11 and message.metadata.message_type == "query.hello":
            return Message(wire.encode_facts({**hello(1), **lie}), reply_to=message)
        return answer(node, message)

    strategy = FedAvg()
    with pytest.raises(ConfigError, match="1 of 3 clients cannot take part: node 11") as caught:
        strategy.run(Loopback([10, 11, 12], lying), CONTEXT, strategy.init({"global": X}, 7), 1)
    assert reason in str(caught.value)


def garbled(message: Message, json: str) -> Message:
    return Message(RecordDict({"facts": ConfigRecord({"json": json, "layouts": "{}"})}), reply_to=message)


@pytest.mark.parametrize("json", ["{", "[1]", '{"failure": 3}', '{"failure": []}', '{"metrics": []}'])
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_garbage_is_left_out_whatever_it_is(kind, json):
    def spoil(node, message):
        if node == 11 and message.metadata.message_type == kind:
            return garbled(message, json)
        return answer(node, message)

    strategy, seen = FedAvg(), []
    context = replace(CONTEXT, on_round=lambda state, record: seen.append(record))
    strategy.run(Loopback([10, 11, 12], spoil), context, strategy.init({"global": X}, 7), 1)
    assert set(seen[-1]["failed"]) == {"1"}
    assert sorted(seen[-1]["eval"]["clients"]) == (["0", "2"] if kind == "evaluate" else ["0", "1", "2"])


@pytest.mark.parametrize("json", ["{", '{"failure": 3}', "[1]"])
def test_a_garbled_hello_is_one_line(json):
    def spoil(node, message):
        return garbled(message, json) if node == 11 else answer(node, message)

    strategy = FedAvg()
    with pytest.raises(ConfigError, match="1 of 3 clients cannot take part"):
        strategy.run(Loopback([10, 11, 12], spoil), CONTEXT, strategy.init({"global": X}, 7), 1)


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        (Update(1, 4, "global", {}, {"acc": math.nan}), "metric 'acc' is nan"),
        (Update(1, 4, "global", {}, {"acc": "high"}), "metric 'acc' is a str"),  # type: ignore[dict-item]
        (Update(1, -4, "global", {}, {"acc": 1.0}), "-4 examples"),
        (Update(1, 4, "global", {"delta": {}}, {"acc": 1.0}), "trees ['delta'] with its scores"),
    ],
)
def test_bad_scores_are_left_out_and_named(update, reason):
    def spoil(node, message):
        if node == 11 and message.metadata.message_type == "evaluate":
            return Message(wire.encode_update(update), reply_to=message)
        return answer(node, message)

    strategy, seen = FedAvg(), []
    context = replace(CONTEXT, on_round=lambda state, record: seen.append(record))
    strategy.run(Loopback([10, 11, 12], spoil), context, strategy.init({"global": X}, 7), 1)
    assert reason in seen[-1]["failed"]["1"]
    assert seen[-1]["eval"]["mean"]["acc"] == pytest.approx(0.1)
