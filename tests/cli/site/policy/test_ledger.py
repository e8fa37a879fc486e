"""Runs and rounds, counted on the site's own disk."""

from dataclasses import replace

import pytest
import torch

from cli.site.policy.ledger import Ledger
from cli.site.policy.rules import OPEN, Policy
from core.config import parse
from core.errors import PolicyRefused
from core.types import Order, Update

CONFIG = parse({})
POLICY = Policy(**{**OPEN, "max_runs": 2, "max_rounds": 2, "max_total_rounds": 3})


def order(rnd: int, value: float = 0.0) -> Order:
    return Order(0, {"global": {"a": torch.full((2,), value)}}, round=rnd)


def update(value: float, **more: object) -> Update:
    return Update(0, 20, "global", {"delta": {"a": torch.full((2,), value)}}, {"loss": value, **more})


def answer(ledger: Ledger, run: str, kind: str, rnd: int, value: float | None = None) -> None:
    ledger.check(POLICY, run, kind, order(rnd))
    ledger.spend(POLICY, run, kind, order(rnd), update(rnd if value is None else value))


def test_a_run_beyond_the_budget_is_refused_also_after_a_restart(tmp_path):
    for run in ("a", "b", "a"):
        Ledger(tmp_path).enter(POLICY, run, "anna", CONFIG)
    with pytest.raises(PolicyRefused, match="run 'c' would be number 3; this site allows 2"):
        Ledger(tmp_path).enter(POLICY, "c", "anna", CONFIG)


def test_rounds_beyond_the_budget_are_refused_also_after_a_restart(tmp_path):
    answer(Ledger(tmp_path), "a", "train", 1)
    answer(Ledger(tmp_path), "a", "train", 2)
    with pytest.raises(PolicyRefused, match="run 'a' has had all 2 answers to train"):
        Ledger(tmp_path).check(POLICY, "a", "train", order(3))


def test_rounds_of_all_runs_together_are_counted(tmp_path):
    for run, rnd in (("a", 1), ("a", 2), ("b", 1)):
        answer(Ledger(tmp_path), run, "train", rnd, float(ord(run) + rnd))
    with pytest.raises(PolicyRefused, match=r"all 3 answers to train .* over all runs"):
        Ledger(tmp_path).check(POLICY, "b", "train", order(2))


def test_scores_have_a_count_of_their_own_with_one_more_for_the_start(tmp_path):
    for rnd in (0, 1, 2):
        answer(Ledger(tmp_path), "a", "evaluate", rnd)
    answer(Ledger(tmp_path), "a", "train", 1)
    with pytest.raises(PolicyRefused, match="run 'a' has had all 3 answers to evaluate"):
        Ledger(tmp_path).check(POLICY, "a", "evaluate", order(1, 0.5))


def test_the_same_answer_again_costs_nothing(tmp_path):
    for _ in range(5):
        answer(Ledger(tmp_path), "a", "train", 1)
        answer(Ledger(tmp_path), "a", "train", 2)


def test_the_same_order_with_another_answer_costs_a_round(tmp_path):
    """As on a GPU whose sums differ, or where the rows have changed: the mean of many answers says more than one."""
    answer(Ledger(tmp_path), "a", "train", 1, 1.0)
    answer(Ledger(tmp_path), "a", "train", 1, 2.0)
    with pytest.raises(PolicyRefused, match="run 'a' has had all 2 answers"):
        answer(Ledger(tmp_path), "a", "train", 1, 3.0)


def test_how_long_an_answer_took_makes_it_no_other(tmp_path):
    ledger = Ledger(tmp_path)
    for seconds in range(5):
        ledger.spend(POLICY, "a", "train", order(1), update(1.0, **{"seconds/train": float(seconds)}))
    ledger.spend(POLICY, "a", "train", order(2), update(2.0))


def test_an_order_that_differs_in_a_bit_is_another(tmp_path):
    answer(Ledger(tmp_path), "a", "train", 1)
    answer(Ledger(tmp_path), "a", "train", 2)
    Ledger(tmp_path).check(POLICY, "a", "train", order(1))
    for other in (order(1, 1e-9), replace(order(1), recall=1), replace(order(1), adapter="c0")):
        with pytest.raises(PolicyRefused, match="all 2 answers"):
            Ledger(tmp_path).check(POLICY, "a", "train", other)


@pytest.mark.parametrize(
    ("owner", "keys"),
    [
        ("eve", {}),
        ("anna", {"run.seed": 43}),
        ("anna", {"eval.max-rows": 5}),
        ("anna", {"train.max-length": 8}),
    ],
)
def test_a_run_keeps_its_owner_and_its_keys(tmp_path, owner, keys):
    Ledger(tmp_path).enter(POLICY, "a", "anna", CONFIG)
    with pytest.raises(PolicyRefused, match="another configuration or owner"):
        Ledger(tmp_path).enter(POLICY, "a", owner, parse(keys))


def test_a_resumed_run_is_the_same_run(tmp_path):
    Ledger(tmp_path).enter(POLICY, "a", "anna", CONFIG)
    more = parse(
        {"run.resume": "runs/a", "run.dir": "/else", "run.num-server-rounds": 20, "fault.min-replies": 2}
    )
    Ledger(tmp_path).enter(POLICY, "a", "anna", more)


def test_the_secret_is_made_once_and_is_the_sites_alone(tmp_path):
    secret = Ledger(tmp_path / "one").secret()
    assert secret == Ledger(tmp_path / "one").secret() != Ledger(tmp_path / "two").secret()
    assert (tmp_path / "one" / "secret").stat().st_mode & 0o777 == 0o600
    (tmp_path / "one" / "secret").write_bytes(b"")
    with pytest.raises(PolicyRefused, match="secret is damaged"):
        Ledger(tmp_path / "one").secret()
