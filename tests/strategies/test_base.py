"""The round loop, over a Grid in this process whose clients are plain functions."""

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict

from core import framing, wire
from core.errors import ConfigError, RoundFailed, TreeMismatch
from core.sections import FaultConfig
from core.types import Update
from strategies.fedavg import FedAvg
from strategies.rounds import meeting
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
    task_options=lambda pooled: {"seen": pooled.get("n", 0.0), "kl": pooled.get("kl_sum", -1.0)},
    on_hello=lambda hellos: None,
    on_round=lambda state, record: None,
)


def hello(client: int) -> dict:
    more = {"data": "", "skipped": {}, "truth": None}
    return {"client": client, "examples": client + 1, "census": {"n": 1.0}, **more}


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


def test_two_rounds_by_hand():
    """Weights 1, 2, 3 of 6; first entry (1*.1 + 2*.2 + 3*.3)/6 = 1.4/6 a round; second .1, then .2."""
    states, records = federate(2)
    assert [s.round for s in states] == [0, 1, 2]
    assert states[-1].adapters["global"]["w"].tolist() == pytest.approx([2 * 1.4 / 6, 0.3])
    assert records[2]["participants"] == [0, 1, 2]
    assert records[0]["eval"]["mean"]["acc"] == pytest.approx(0.1)
    assert records[1]["train"]["mean"]["loss"] == 0.5
    assert "train" not in records[0]


def test_the_result_does_not_depend_on_who_answers_first():
    straight, reverse = federate(2)[0][-1], federate(2, arrival=lambda m: m[::-1])[0][-1]
    assert straight.adapters["global"]["w"].equal(reverse.adapters["global"]["w"])


def test_a_resumed_run_is_the_same_run():
    whole = federate(3)[0][-1]
    half = federate(1)[0][-1]
    resumed = federate(3, state=half)[0][-1]
    assert resumed.adapters["global"]["w"].equal(whole.adapters["global"]["w"])
    assert replace(resumed, adapters={}) == replace(whole, adapters={})


def test_task_settings_are_computed_from_the_pooled_counts_and_the_last_rounds_sums():
    seen = []

    def task_options(pooled):
        seen.append((pooled["n"], pooled.get("kl_sum")))
        return {}

    federate(2, task_options=task_options)
    assert seen[0] == (3.0, None)
    assert seen[-1] == (3.0, 6.0)


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
        (reply(lambda u: replace(u, metrics={"loss": "low"})), "unreadable reply"),
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


def test_two_nodes_of_one_partition_are_refused():
    strategy, twins = FedAvg(), Loopback([10, 11, 12], lambda n, m: answer(10, m))
    with pytest.raises(ConfigError, match="two nodes have partition-id 0"):
        strategy.run(twins, CONTEXT, strategy.init({"global": X}, 7), 1)


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


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"examples": -3}, "examples = -3"),
        ({"examples": 10**15}, "from 0 to 100000000"),
        ({"client": "one"}, "client = 'one'"),
        ({"census": {"n": math.nan}}, "expected finite numbers by name"),
        ({"census": [3]}, "expected finite numbers by name"),
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


def test_the_base_is_scored_once():
    """A run that stopped after round 0 has its record."""
    states, _ = federate(0)
    _, records = federate(1, state=states[0], base_scored=True)
    assert [r["round"] for r in records] == [1]


def test_updates_are_folded_while_others_still_train():
    """The third reply comes only after the first two have been folded."""
    folded: list[int] = []

    class Watched(FedAvg):
        def fold(self, state, rnd):
            fold = super().fold(state, rnd)
            add = fold.add
            fold.add = lambda update: (folded.append(update.client), add(update))[1]
            return fold

    class Late(Loopback):
        def pull_messages(self, message_ids):
            for message in list(super().pull_messages(message_ids)):
                training = message.metadata.message_type == "train"
                if training and message.metadata.src_node_id == 12 and folded != [0, 1]:
                    self._replies[message.metadata.reply_to_message_id] = message
                else:
                    yield message

    strategy = Watched()
    strategy.run(Late([10, 11, 12], answer), CONTEXT, strategy.init({"global": X}, 7), 1)
    assert folded == [0, 1, 2]


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
        (Update(1, 4, "global", {}, {"acc": "high"}), "unreadable reply"),  # type: ignore[dict-item]
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
