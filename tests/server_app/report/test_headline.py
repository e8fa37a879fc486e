"""The headline of a run, against numbers by hand."""

import pytest

from server_app.report.headline import headline
from server_app.report.reading import read_run
from server_app.report.stats import MIN_CLUSTERS, PREFERENCE, accuracy_metric, by_key, wilson
from tests.server_app.report.sample import (
    RIGHT_AFTER,
    RIGHT_BEFORE,
    dpo_record,
    dpo_run,
    selector_record,
    sft_record,
    write_run,
)


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


def test_the_last_groups_are_compared_with_the_planted_types(tmp_path):
    """Without the truth, or without groups, there is no estimate."""
    routes = [{}, {"0": "c0", "1": "c0", "2": "c1"}, {"0": "c0", "1": "c1", "2": "c0"}, {}]
    records = [{**dpo_record(rnd), **({"route": r} if r else {})} for rnd, r in enumerate(routes)]
    truth = {"0": 1, "1": 0, "2": 1, "3": 0}
    estimates = by_key(headline(read_run(write_run(tmp_path, records, truth=truth))))
    assert (estimates["purity"].value, estimates["purity"].n, estimates["rand"].value) == (1.0, 3, 1.0)
    (tmp_path / "other").mkdir()
    assert "purity" not in by_key(headline(read_run(write_run(tmp_path / "other", records))))
