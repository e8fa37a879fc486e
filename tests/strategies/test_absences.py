"""Clients that refuse, are silent, leave or return, and the quorum of a round."""

from dataclasses import replace

import pytest
from flwr.app import Error, Message

from core import framing, wire
from core.errors import RoundFailed
from strategies.fedavg import FedAvg
from strategies.rounds import meeting
from tests.loopback import Loopback
from tests.strategies.plain_clients import CONTEXT, X, answer, federate


def test_too_few_replies_stop_the_run_with_the_last_round_kept():
    kept: list = []
    with pytest.raises(
        RoundFailed,
        match=r"round 1: 2 of 3 clients answered, 3 are required by fault.min-replies = 3 .*\(client 1: no",
    ):
        federate(1, bad=lambda *_: None, fault=replace(CONTEXT.fault, min_replies=3), kept=kept)
    assert [s.round for s in kept] == [0]


def test_too_few_clients_is_said():
    with pytest.raises(
        RoundFailed, match=r"3 clients connected within 0.3 s, strategy.min-available-nodes = 4"
    ):
        federate(1, min_available_nodes=4)


def test_a_share_of_the_clients_can_be_the_quorum():
    with pytest.raises(
        RoundFailed, match=r"2 of 3 clients answered, 3 are required .* fault.min-fraction = 0.7"
    ):
        federate(1, bad=lambda *_: None, fault=replace(CONTEXT.fault, min_fraction=0.7))
    assert federate(1, bad=lambda *_: None, fault=replace(CONTEXT.fault, min_fraction=0.6))[0][-1].round == 1


def test_the_next_round_asks_again_whoever_failed():
    calls = []

    def once(message, update):
        calls.append(1)
        return None if len(calls) == 1 else Message(wire.encode_update(update), reply_to=message)

    _, records = federate(2, bad=once)
    assert [r["participants"] for r in records[1:]] == [[0, 2], [0, 1, 2]]


def refusing(node, message):
    """Client 1's site lets nobody train under this app."""
    if node == 11:
        return Message(
            framing.encode_failure(framing.Failure("PolicyRefused", "not this app")), reply_to=message
        )
    return answer(node, message)


def test_a_site_whose_policy_refuses_is_left_out_asked_once_and_named():
    asked, seen, told = [], [], []

    def counting(node, message):
        asked.append((node, message.metadata.message_type))
        return refusing(node, message)

    strategy = FedAvg()
    context = replace(
        CONTEXT, min_available_nodes=2, on_round=lambda _, record: seen.append(record), say=told.append
    )
    strategy.run(Loopback([10, 11, 12], counting), context, strategy.init({"global": X}, 7), 2)
    assert [record["participants"] for record in seen[1:]] == [[0, 2], [0, 2]]
    assert [kind for node, kind in asked if node == 11] == ["query.hello"]
    assert told == ["client left out: PolicyRefused: not this app"]


def test_too_few_are_left_when_a_policy_refuses():
    strategy = FedAvg()
    with pytest.raises(RoundFailed, match=r"2 clients can take part, .* = 3 \(PolicyRefused: not this app\)"):
        strategy.run(Loopback([10, 11, 12], refusing), CONTEXT, strategy.init({"global": X}, 7), 1)


def test_waiting_for_clients_is_said(monkeypatch):
    monkeypatch.setattr(meeting, "QUIET_S", 0.05)
    told: list[str] = []
    with pytest.raises(RoundFailed, match="2 clients connected within"):
        FedAvg().run(
            Loopback([10, 11], answer), replace(CONTEXT, say=told.append), FedAvg().init({"global": X}, 7), 1
        )
    assert told == ["waiting  2 of 3 clients are connected"]


def test_a_silent_client_is_left_out_when_enough_others_are_there():
    def silent(node, message):
        return None if node == 11 else answer(node, message)

    strategy, seen = FedAvg(), []
    context = replace(CONTEXT, min_available_nodes=2, on_round=lambda state, record: seen.append(record))
    strategy.run(Loopback([10, 11, 12], silent), context, strategy.init({"global": X}, 7), 1)
    assert seen[-1]["participants"] == [0, 2]
    with pytest.raises(RoundFailed, match=r"2 clients can take part, strategy.min-available-nodes = 3"):
        strategy.run(Loopback([10, 11, 12], silent), CONTEXT, strategy.init({"global": X}, 7), 1)


def gone(message: Message, code: int = 5, reason: str = "Node Unavailable") -> Message:
    """What the SuperLink itself answers for a node that has left: the sender is the SuperLink."""
    reply = Message(Error(code, reason), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = 1
    return reply


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ((5, "Node Unavailable"), "Flower: Node Unavailable"),
        ((3, "It may have expired"), "no answer within 0.3 s"),
        ((4, "The reply message has expired"), "no answer within 0.3 s"),
    ],
)
def test_a_node_that_flower_gives_up_on_is_left_out_and_named(word, reason):
    _, records = federate(1, bad=lambda message, update: gone(message, *word))
    assert records[1]["failed"] == {"1": reason}
    assert records[1]["participants"] == [0, 2]


def test_a_node_that_left_before_it_said_who_it_is_stops_nobody():
    def left(node, message):
        return gone(message) if node == 11 else answer(node, message)

    strategy, seen = FedAvg(), []
    context = replace(CONTEXT, min_available_nodes=2, on_round=lambda state, record: seen.append(record))
    strategy.run(Loopback([10, 11, 12], left), context, strategy.init({"global": X}, 7), 1)
    assert seen[-1]["participants"] == [0, 2]


def test_a_client_that_failed_may_come_back_as_another_node():
    """Node 11 dies in round 1 and stays listed; node 21 says that it is the same client."""
    grid = Loopback([10, 11, 12], lambda n, m: None)

    def restarted(node, message):
        if message.metadata.message_type == "train" and node == 11:
            grid.nodes = [10, 11, 12, 21]
            return None
        if node == 11 and 21 in grid.nodes:
            return None
        return answer(11 if node == 21 else node, message)

    grid.answer = restarted
    strategy, seen = FedAvg(), []
    context = replace(CONTEXT, on_round=lambda state, record: seen.append(record))
    strategy.run(grid, context, strategy.init({"global": X}, 7), 2)
    assert [r["participants"] for r in seen[1:]] == [[0, 2], [0, 1, 2]]
    late = "no answer within 0.3 s"
    assert seen[1]["failed"] == {"1": f"{late}; evaluation: {late}"}
    assert seen[2]["failed"] == {}


def test_clients_that_leave_between_rounds_count_against_the_quorum():
    grid = Loopback([10, 11, 12], answer)
    context = replace(
        CONTEXT,
        fault=replace(CONTEXT.fault, min_replies=3),
        on_round=lambda state, record: setattr(grid, "nodes", [10, 12] if state.round else [10, 11, 12]),
    )
    strategy = FedAvg()
    with pytest.raises(RoundFailed, match=r"2 clients are still connected, fault.min-replies = 3"):
        strategy.run(grid, context, strategy.init({"global": X}, 7), 2)
