"""The statistics of a run, against numbers by hand and an independent formula."""

import math

import numpy as np
import pytest

from server_app.report.headline import headline
from server_app.report.reading import Half, Run, read_run
from server_app.report.stats import (
    MIN_CLUSTERS,
    PREFERENCE,
    accuracy_metric,
    adjusted_rand,
    by_key,
    cluster_interval,
    gain,
    pooled,
    purity,
    spread,
    wilson,
    worst,
)
from tests.server_app.report.sample import (
    RIGHT_AFTER,
    RIGHT_BEFORE,
    dpo_record,
    dpo_run,
    selector_record,
    sft_record,
    write_run,
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


def test_the_headline_of_a_known_run(tmp_path):
    """192 of 384 pairs before, 280 after; client 5 is the worst with 26 of 48."""
    estimates = by_key(headline(read_run(dpo_run(tmp_path))))
    assert estimates["before"].value == pytest.approx(sum(RIGHT_BEFORE) / 384)
    assert estimates["after"].value == pytest.approx(sum(RIGHT_AFTER) / 384)
    assert estimates["after"].n == 384
    assert (estimates["after"].low, estimates["after"].high) == pytest.approx(wilson(280 / 384, 384))
    assert estimates["gain"].value == pytest.approx((280 - 192) / 384)
    assert estimates["gain"].low is not None
    assert estimates["gain"].high is not None
    assert 0 < estimates["gain"].low < estimates["gain"].value < estimates["gain"].high
    assert (estimates["worst"].name, estimates["worst"].value) == ("Worst client (5)", pytest.approx(26 / 48))
    assert estimates["worst"].low is None


def test_few_clients_get_a_gain_without_an_interval(tmp_path):
    absent = tuple(range(MIN_CLUSTERS - 1, 8))
    records = [dpo_record(0), dpo_record(1, absent=absent)]
    assert by_key(headline(read_run(write_run(tmp_path, records))))["gain"].low is None


def test_sft_reports_tokens_and_loss_before_and_after(tmp_path):
    run = read_run(write_run(tmp_path, [sft_record(r) for r in range(4)], task="sft"))
    values = {e.name: e.value for e in headline(run)}
    assert values == pytest.approx({
        "Token accuracy, base": 0.4,
        "Token accuracy, round 3": 0.46,
        "Held-out loss, base": 2.1,
        "Held-out loss, round 3": 1.8,
    })  # fmt: skip


def test_a_selectors_accuracy_is_its_headline(tmp_path):
    """The same pairs as dpo's, so the same numbers, under its own metric."""
    run = read_run(write_run(tmp_path, [selector_record(r) for r in (0, 12)], task="selector"))
    assert accuracy_metric(run) == "accuracy"
    estimates = by_key(headline(run))
    assert estimates["before"].value == pytest.approx(192 / 384)
    assert estimates["after"].value == pytest.approx(280 / 384)
    assert estimates["gain"].low is not None
    assert {"worst", "spread", "longer"} <= estimates.keys()


def test_two_rewards_together_have_a_headline_of_their_own(tmp_path):
    """Client c has 30 + c of 48 pairs right together: mean 33.5, the worst is client 0, the deviation sqrt 6. What only
    the last round measured is not in a run that did not."""
    record = dpo_record(12)
    for client, metrics in record["eval"]["clients"].items():
        metrics |= {"explicit/accuracies": 0.5, "combined/accuracies": (30 + int(client)) / 48}
    estimates = by_key(headline(read_run(write_run(tmp_path, [dpo_record(0), record]))))
    assert estimates["combined"].value == pytest.approx(33.5 / 48)
    assert estimates["combined"].low is not None
    assert estimates["explicit"].value == 0.5
    assert (estimates["combined worst"].name, estimates["combined worst"].value) == (
        "Combined, worst client (0)",
        30 / 48,
    )
    assert estimates["combined spread"].value == pytest.approx(6**0.5 / 48)
    (tmp_path / "plain").mkdir()
    assert not {"combined", "explicit"} & by_key(headline(read_run(dpo_run(tmp_path / "plain")))).keys()


def test_an_impossible_share_gets_no_interval(tmp_path):
    """A client can report anything; the report must still be written."""
    record = dpo_record(0)
    record["eval"]["clients"]["0"][PREFERENCE] = 40.0
    estimate = by_key(headline(read_run(write_run(tmp_path, [record]))))["before"]
    assert estimate.value > 1
    assert estimate.low is None


def test_purity_and_the_adjusted_rand_index_by_hand():
    """Groups aabb against types 0012: 2 + 1 of 4 are of their group's type. Pairs together in both: 1; in either: 2
    and 1 of 6, so by chance 1/3: (1 - 1/3) / (3/2 - 1/3) = 4/7."""
    assert purity("aabb", [0, 0, 1, 2]) == 0.75
    assert adjusted_rand("aabb", [0, 0, 1, 2]) == pytest.approx(4 / 7)
    assert adjusted_rand("ab", [5, 3]) is None, "all alone, in both"
    assert (purity("bca", [0, 1, 2]), purity("aaa", [0, 1, 2])) == (1.0, 1 / 3)
    assert adjusted_rand("abcabc", [2, 0, 1, 2, 0, 1]) == 1.0
    assert adjusted_rand("aaabbb", [0, 1, 0, 1, 0, 1]) < 0


def test_the_last_groups_are_compared_with_the_planted_types(tmp_path):
    """Without the truth, or without groups, there is no estimate."""
    routes = [{}, {"0": "c0", "1": "c0", "2": "c1"}, {"0": "c0", "1": "c1", "2": "c0"}, {}]
    records = [{**dpo_record(rnd), **({"route": r} if r else {})} for rnd, r in enumerate(routes)]
    truth = {"0": 1, "1": 0, "2": 1, "3": 0}
    estimates = by_key(headline(read_run(write_run(tmp_path, records, truth=truth))))
    assert (estimates["purity"].value, estimates["purity"].n, estimates["rand"].value) == (1.0, 3, 1.0)
    (tmp_path / "other").mkdir()
    assert "purity" not in by_key(headline(read_run(write_run(tmp_path / "other", records))))
