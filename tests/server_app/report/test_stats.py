"""The statistics of a run, against numbers by hand and an independent formula."""

import math

import numpy as np
import pytest

from server_app.report.headline import headline
from server_app.report.reading import Half, Run, read_run
from server_app.report.stats import (
    PREFERENCE,
    adjusted_rand,
    cluster_interval,
    gain,
    pooled,
    purity,
    spread,
    wilson,
    worst,
)


def half(values: dict[int, float], rows: dict[int, int]) -> Half:
    return Half({}, {c: {PREFERENCE: v, "examples": float(rows[c])} for c, v in values.items()})


def test_wilson_is_the_solution_of_the_score_equation():
    """The ends p solve (x - p)^2 = z^2 p (1 - p) / n, with z = 1.959964 (Wilson 1927)."""
    for share, count in [(0.5, 384), (0.0, 10), (1.0, 48), (0.73, 37)]:
        x = round(share * count) / count
        for p in wilson(share, count):
            assert (x - p) ** 2 == pytest.approx(1.959963985**2 * p * (1 - p) / count, abs=1e-9)
    assert wilson(0.5, 100) == pytest.approx(
        (0.403832, 0.596168), abs=1e-6
    )  # (50 + z^2/2)/(100 + z^2) -+ ...


def test_pooling_counts_rows_not_clients():
    """1.0 of 10 rows and 0.5 of 30 rows: 25 of 40."""
    share = pooled(half({0: 1.0, 1: 0.5}, {0: 10, 1: 30}), PREFERENCE)
    assert share is not None
    assert (share.value, share.rows) == (0.625, 40)


def test_metrics_without_data_are_absent():
    empty = Half({}, {0: {"examples": 4.0}})
    assert pooled(empty, PREFERENCE) is None
    assert worst(empty, PREFERENCE) is None
    assert spread(empty, PREFERENCE) is None
    assert gain(empty, empty, PREFERENCE, seed=0) is None
    assert headline(Run(dir=read_run("nowhere").dir, config={}, manifest={})) == []


def test_worst_and_spread_by_hand():
    """0.2, 0.4, 0.6: the deviation over clients is 0.2; a tie goes to the smaller id; nan is no value."""
    assert spread(half({0: 0.2, 1: 0.4, 2: 0.6}, {0: 1, 1: 1, 2: 1}), PREFERENCE) == pytest.approx(0.2)
    tie = half({1: math.nan, 4: 0.3, 2: 0.3, 7: 0.9}, {1: 1, 2: 1, 4: 1, 7: 1})
    assert worst(tie, PREFERENCE) == (2, 0.3)


def test_gain_pairs_the_clients_that_were_measured_both_times():
    """Clients 1 and 2: +0.1 of 10 rows, +0.4 of 30 rows: 13/40. Two clients carry no 95 % interval."""
    before = half({0: 0.9, 1: 0.5, 2: 0.5}, {0: 99, 1: 10, 2: 30})
    after = half({1: 0.6, 2: 0.9, 3: 0.1}, {1: 10, 2: 30, 3: 99})
    change = gain(before, after, PREFERENCE, seed=0)
    assert change is not None
    assert change.value == pytest.approx(13 / 40)
    assert (change.low, change.high, change.n, change.of) == (None, None, 2, "clients")


def test_the_cluster_interval_is_close_to_students_for_equal_weights():
    """Expanded percentiles aim at mean -+ t s / sqrt(C); 24 clients, so the bootstrap is nearly normal."""
    deltas = np.random.default_rng(3).normal(0.2, 0.1, 24)
    low, high = cluster_interval(deltas, np.ones(24), seed=1)
    arm = 2.0687 * deltas.std(ddof=1) / np.sqrt(24)  # t quantile 0.975 at 23 degrees of freedom
    assert low == pytest.approx(deltas.mean() - arm, abs=0.15 * arm)  # 15 %: quantiles of 10,000 resamples
    assert high == pytest.approx(deltas.mean() + arm, abs=0.15 * arm)


def test_the_cluster_interval_is_seeded_and_weighs_the_rows():
    deltas, ones = np.random.default_rng(4).normal(0.2, 0.1, 24), np.ones(24)
    assert cluster_interval(deltas, ones, seed=5) == cluster_interval(deltas, ones, seed=5)
    assert cluster_interval(deltas, ones, seed=5) != cluster_interval(deltas, ones, seed=6)
    assert cluster_interval(np.full(6, 0.25), ones[:6], seed=5) == pytest.approx((0.25, 0.25))
    silent = np.where(np.arange(24) < 12, 1e-9, 1.0)  # clients almost without rows do not move the mean
    noisy = np.where(np.arange(24) < 12, deltas, 0.25)
    assert cluster_interval(noisy, silent, seed=5) == pytest.approx((0.25, 0.25), abs=1e-6)


def test_purity_and_the_adjusted_rand_index_by_hand():
    """Groups aabb against types 0012: 2 + 1 of 4 are of their group's type. Pairs together in both: 1; in either: 2
    and 1 of 6, so by chance 1/3: (1 - 1/3) / (3/2 - 1/3) = 4/7."""
    assert purity("aabb", [0, 0, 1, 2]) == 0.75
    assert adjusted_rand("aabb", [0, 0, 1, 2]) == pytest.approx(4 / 7)
    assert adjusted_rand("ab", [5, 3]) is None, "all alone, in both"
    assert (purity("bca", [0, 1, 2]), purity("aaa", [0, 1, 2])) == (1.0, 1 / 3)
    assert adjusted_rand("abcabc", [2, 0, 1, 2, 0, 1]) == 1.0
    assert adjusted_rand("aaabbb", [0, 1, 0, 1, 0, 1]) < 0
