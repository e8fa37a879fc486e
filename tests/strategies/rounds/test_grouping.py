import time

import numpy as np
import pytest

from strategies.rounds import grouping
from tests.vectors import FEDBISCUIT


def cases() -> list:
    return [pytest.param(c, id=c["name"]) for c in FEDBISCUIT["balanced_grouping"]["cases"]]


@pytest.mark.parametrize("case", cases())
def test_greedy_is_the_references_with_its_trace(case):
    trace = grouping.Trace()
    losses = np.array(case["loss"])
    assert grouping.greedy(losses, case["sender_order_after_shuffle"], trace) == case["ref_assignment"]
    assert [s.picked for s in trace.steps] == case["ref_finalise_order"]
    if case.get("trace"):
        for step, want in zip(trace.steps, case["trace"], strict=True):
            assert (step.cap, step.picked, step.accepted, step.evicted) == (
                want["cap"], want["picked"], want["kept"], want["evicted"],
            )  # fmt: skip
            assert step.candidates == {int(u): c for u, c in want["candidates"].items()}


@pytest.mark.parametrize("case", cases())
def test_exact_reaches_the_least_loss_with_balanced_sizes(case):
    losses = np.array(case["loss"])
    groups = grouping.exact(losses)
    total = sum(losses[m, u] for m, u in enumerate(groups))
    assert total == pytest.approx(case["optimal_total_loss"], abs=1e-9)
    sizes = np.bincount(groups, minlength=losses.shape[1])
    assert sizes.max() - sizes.min() <= 1


def test_fifty_three_clients_and_three_selectors_in_ten_milliseconds():
    losses = np.random.default_rng(0).normal(0.69, 0.05, (53, 3))
    grouping.exact(losses)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        grouping.exact(losses)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.010


def test_a_client_stays_for_a_small_gain_and_goes_for_a_large_one():
    """Two and two; clients 1 and 2 would gain 0.01 by changing places."""
    losses = np.array([[0.5, 0.7], [0.605, 0.6], [0.6, 0.605], [0.7, 0.5]])
    assert grouping.exact(losses) == [0, 1, 0, 1]
    assert grouping.exact(losses, current=[0, 0, 1, 1], hysteresis=0.5) == [0, 0, 1, 1]
    assert grouping.exact(
        losses + np.array([[0, 0], [0.3, 0], [0, 0.3], [0, 0]]), current=[0, 0, 1, 1], hysteresis=0.5
    ) == [0, 1, 0, 1]
    assert grouping.exact(losses, current=[0, None, None, 1], hysteresis=0.5) == [0, 1, 0, 1]


def test_soft_balance_follows_clear_wishes_and_splits_unclear_ones():
    """Three of four belong to selector 0: a hard balance puts one of them where it does not belong."""
    losses = np.array([[0.2, 0.9], [0.2, 0.9], [0.25, 0.9], [0.9, 0.2]])
    assert grouping.exact(losses) in ([0, 0, 1, 1], [0, 1, 0, 1], [1, 0, 0, 1])
    assert grouping.exact(losses, softness=0.5) == [0, 0, 0, 1]
    assert sorted(grouping.exact(np.full((4, 2), 0.7) + np.eye(4, 2) * 1e-9, softness=0.5)) == [0, 0, 1, 1]


def test_a_loss_that_is_not_a_number_is_the_worst():
    losses = np.array([[np.nan, 0.7], [0.7, np.inf]])
    assert grouping.exact(losses) == [1, 0]
    assert grouping.greedy(losses, [0, 1]) == [1, 0]


def test_more_selectors_than_clients():
    groups = grouping.exact(np.array([[0.1, 0.2, 0.3], [0.1, 0.15, 0.3]]))
    assert groups == [0, 1]


def test_who_is_fixed_stays_and_counts_in_the_sizes():
    """Everybody wants selector 0; clients 0 and 1 must stay in 2, so one more goes there only if sizes ask for it."""
    losses = np.array([[0.1, 0.5, 0.9]] * 6)
    groups = grouping.exact(losses, current=[2, 2, 0, 0, 1, None], fixed=[True, True, *[False] * 4])
    assert groups[:2] == [2, 2]
    assert sorted(groups) == [0, 0, 1, 1, 2, 2]
    crowded = grouping.exact(losses, current=[2, 2, 2, 2, 1, None], fixed=[True] * 4 + [False] * 2)
    assert crowded[:4] == [2, 2, 2, 2]
    assert sorted(crowded[4:]) == [0, 1]
    soft = grouping.exact(losses, current=[2, 2, 0, 0, 1, 1], fixed=[True, True, *[False] * 4], softness=0.01)
    assert soft == [2, 2, 0, 0, 0, 0]
    assert grouping.exact(losses, current=[0, 1, 2, 0, 1, 2], fixed=[True] * 6) == [0, 1, 2, 0, 1, 2]


def test_newcomers_join_the_smallest_group():
    assert grouping.join({0: 0, 1: 0, 2: 2}, [7, 5, 9], 3) == {0: 0, 1: 0, 2: 2, 7: 1, 5: 1, 9: 2}
