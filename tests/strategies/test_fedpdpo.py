"""What FedPDPO and its neighbours ask of a client, by hand."""

import pytest
import torch

from core.config import parse
from core.errors import ConfigError
from core.plugins import build, names
from core.types import Client, Order
from strategies.clients.rule import FINISH, ClientRule, Outcome
from strategies.ditto import Ditto
from strategies.fedavg import FedAvg
from strategies.fedpdpo import FedPDPO
from tests.test_contracts import start

NAMES = ("l.lora_A.weight", "l.lora_B.weight", "private.head.left")


def value(number: float) -> dict[str, torch.Tensor]:
    return {name: torch.full((2, 2), number) for name in NAMES}


@pytest.mark.parametrize("name", names("strategies"))
def test_no_strategy_lets_a_private_tensor_go_or_rest(name):
    """Whatever its rule says of the adapter; what a client kept comes back."""
    rule = build("strategies", name, {}).local_rule()
    order = Order(
        0,
        {"global": {n: t for n, t in value(1.0).items() if n in NAMES[:2]}, "control": {}},
        round=1,
    )
    memory = {"own": {NAMES[2]: torch.full((2, 2), 7.0)}}
    before = rule.start(order, memory)
    assert before[NAMES[2]].eq(7).all()
    outcome = Outcome(before, value(9.0), 3, 0.1, value(0.0))
    if name == "scaffold":
        order = Order(0, {**order.trees, "control": order.trees["global"]}, round=1)
    sent, kept = rule.finish(order, memory, outcome)
    assert all(NAMES[2] not in tree for tree in sent.values())
    assert kept["own"][NAMES[2]].eq(9).all()
    assert rule.learns(NAMES[2], 1)


def test_even_a_rule_that_asks_for_it_by_name_gets_nothing():
    rule = ClientRule(shares=lambda name, rnd: True, trains=lambda name, rnd: False)
    assert not rule.leaves(NAMES[2], 1)
    assert rule.learns(NAMES[2], 1)
    assert rule.leaves(NAMES[0], 1)
    assert not rule.learns(NAMES[0], 1)


def test_newcomers_open_with_their_own_parts():
    assert FedPDPO().local_rule().newcomer_steps == 10
    assert FedPDPO(personal_steps=0).local_rule() == FedAvg().local_rule()
    with pytest.raises(ConfigError, match=r"strategy.personal-steps must not be negative"):
        FedPDPO(personal_steps=-1)


def test_dittos_own_adapter_is_pulled_to_what_the_server_sent():
    """Gradient 1 + 0.5 (4 - 2) = 2; it is scored once there is one, and trains from where it stood."""
    rule = Ditto(personal_lambda=0.5).local_rule()
    assert rule.pull
    order = Order(0, {"global": {"w": torch.tensor([2.0])}}, round=1)
    assert rule.pull(order)("w", torch.tensor([4.0]), torch.tensor([1.0])).item() == 2.0
    own = {"personal": {"w": torch.tensor([5.0])}}
    assert rule.scored(order, own)["w"].item() == 5.0
    assert rule.start(order, own)["w"].item() == 2.0
    assert rule.scored(order, {})["w"].item() == 2.0
    assert FedAvg().local_rule().scored(order, own)["w"].item() == 2.0
    with pytest.raises(ConfigError, match=r"strategy.personal-lambda must not be negative"):
        Ditto(personal_lambda=-1.0)


def test_the_last_evaluation_alone_asks_for_steps_of_ones_own():
    clients, strategy = [Client(0, 5), Client(3, 5)], FedAvg(finish_steps=7)
    state = start(strategy)  # of 8 rounds
    asked = {
        rnd: [o.options.get(FINISH) for o in strategy.plan_evaluate(state, rnd, clients)] for rnd in (0, 7, 8)
    }
    assert asked == {0: [None, None], 7: [None, None], 8: [7, 7]}
    assert FINISH not in FedAvg().plan_evaluate(state, 8, clients)[0].options
    with pytest.raises(ConfigError, match=r"strategy.finish-steps must not be negative"):
        FedAvg(finish_steps=-1)


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"strategy.name": "fedpdpo"}, "strategy.name = 'fedpdpo' is for task.name = 'pdpo': with 'dpo'"),
        (
            {"task.name": "pdpo", "strategy.name": "scaffold"},
            "strategy.name = 'scaffold'",
        ),
        ({"task.name": "pdpo", "strategy.name": "ditto"}, "strategy.name = 'ditto'"),
        (
            {"task.name": "pdpo", "train.engine": "trl"},
            "train.engine = 'trl' trains dpo, kto, sft, not 'pdpo'",
        ),
        ({"strategy.name": "ditto", "lora.aggregation": "flora"}, "use separate | ffa | rolora | fedsa"),
        (
            {"strategy.name": "ditto", "lora.client-ranks": "4,2", "lora.aggregation": "flexlora"},
            "lora.aggregation = 'flexlora'",
        ),
    ],
)
def test_impossible_pairs_are_refused(flat, message):
    with pytest.raises(ConfigError) as caught:
        parse(flat)
    assert message in str(caught.value)


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedadam", "fedavgm", "local", "fedpdpo"])
def test_pdpo_runs_under_what_leaves_its_parts_alone(strategy):
    assert parse({"task.name": "pdpo", "strategy.name": strategy}).task_choice.name == "pdpo"
