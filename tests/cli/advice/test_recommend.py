"""The recommendation and its numbers, by hand."""

import pytest

from cli.advice.plot import draw_gains
from cli.advice.recommend import (
    CLUSTERS,
    FEDAVG,
    FEDPDPO,
    FINISH,
    LOCAL,
    NAMES,
    ORDER,
    advise,
    choose,
    gain,
    harmed,
    read_results,
)
from core.errors import DataError
from server_app.report.formatting import Table, aligned
from server_app.report.plots import AMBER
from server_app.report.reading import read_run
from tests.server_app.report.sample import RIGHT_AFTER, RIGHT_BEFORE, ROWS, dpo_run, sft_record, write_run
from tests.server_app.report.test_plots import words

NOISE = [0.01, -0.01, 0.02, -0.02, 0.0, 0.01, -0.01, 0.0]


def world(clients: int = 8, **means: float) -> dict[str, dict[int, float]]:
    """Eight clients a little around the mean of each option, each option in an order of its own."""
    return {
        name: {c: means[name] + NOISE[(c + 3 * i) % 8] for c in range(clients)}
        for i, name in enumerate(ORDER)
    }


def flat(value: float = 0.6, **means: float) -> dict[str, float]:
    return {**dict.fromkeys(ORDER, value), **means}


@pytest.mark.parametrize(
    ("means", "word", "option"),
    [
        (flat(0.7, local=0.6), "federate", FEDAVG),
        (flat(0.6, local=0.7), "stay local", LOCAL),
        (flat(0.6), "no difference shown", LOCAL),
        (flat(0.6, fedavg=0.65, finish=0.7), "personalise", FINISH),
        (flat(0.6, fedavg=0.62, finish=0.66, clusters=0.8), "cluster into 3", CLUSTERS),
        (flat(0.6, fedavg=0.62, finish=0.66, clusters=0.7, fedpdpo=0.8), "personalise", FEDPDPO),
        (flat(0.6, fedavg=0.5, fedpdpo=0.7), "personalise", FEDPDPO),
        (flat(0.7, local=0.6, fedpdpo=0.705), "federate", FEDAVG),
    ],
)
def test_the_advice_follows_from_the_numbers(means, word, option):
    advice = advise(world(**means), 3, seed=1)
    assert (advice.word, advice.option) == (word, option)


def test_a_complex_option_without_a_significant_gain_is_named_and_not_advised():
    """FedPDPO is 4 points above FedAvg on average, by one client alone."""
    scores = world(**flat(0.6, fedavg=0.7))
    scores[FEDPDPO] = {**scores[FEDAVG], 0: scores[FEDAVG][0] + 0.3}
    advice = advise(scores, 2, seed=1)
    assert advice.option == FEDAVG
    assert "FedPDPO measured" in advice.reason


def test_an_option_below_the_mean_of_a_simpler_one_is_not_chosen():
    """finish is 10 points over FedAvg, not significantly; clusters are 5 points over it, significantly; 10 is more."""
    scores = world(**flat(0.5, fedavg=0.6, clusters=0.65))
    scores[FINISH] = {c: v + (0.8 if c == 0 else 0.0) for c, v in scores[FEDAVG].items()}
    assert choose(scores, seed=1) == FEDAVG
    del scores[FINISH][0]
    assert choose(scores, seed=1) == CLUSTERS


def test_five_clients_give_no_recommendation():
    advice = advise(world(clients=5, **flat(0.9, local=0.1)), 2, seed=1)
    assert advice.word == "no difference shown"
    assert "5 clients are too few" in advice.reason


def test_the_gain_is_paired_and_clients_are_weighted_equally():
    estimate = gain({1: 0.5, 2: 0.5, 9: 0.1}, {1: 0.6, 2: 0.9, 3: 0.0}, seed=1)
    assert estimate.value == pytest.approx(0.25)
    assert estimate.n == 2
    assert estimate.low is None
    even = gain(dict.fromkeys(range(6), 0.5), dict.fromkeys(range(6), 0.6), seed=1)
    assert (even.low, even.high) == (pytest.approx(0.1), pytest.approx(0.1))
    with pytest.raises(DataError, match="no client in common"):
        gain({1: 0.5}, {2: 0.5}, seed=1)


def test_harmed_are_those_below_alone():
    estimate = harmed({1: 0.5, 2: 0.5, 3: 0.5, 4: 0.5}, {1: 0.4, 2: 0.5, 3: 0.6})
    assert estimate
    assert estimate.value == pytest.approx(1 / 3)
    assert harmed({1: 0.5}, {2: 0.5}) is None


def test_scores_are_the_last_rounds_of_each_client(tmp_path):
    results = read_results(read_run(dpo_run(tmp_path)))
    assert results.scores == {c: right / ROWS for c, right in enumerate(RIGHT_AFTER)}
    assert results.base == {c: right / ROWS for c, right in enumerate(RIGHT_BEFORE)}
    assert results.combined == {}


def test_a_run_without_preferences_is_named(tmp_path):
    run = read_run(write_run(tmp_path, [sft_record(0), sft_record(1)]))
    with pytest.raises(DataError, match="logps/accuracies"):
        read_results(run)


def test_a_table_is_aligned_in_a_terminal():
    table = Table(("option", "mean"), (("FedAvg", "7.0 %"), ("alone", "61.0 %")), numbers=(1,))
    assert aligned(table) == ["option    mean", "FedAvg   7.0 %", "alone   61.0 %"]


def test_the_gains_are_drawn_for_every_option_but_alone():
    plot = draw_gains(world(**flat(0.7, local=0.6)), FEDAVG, seed=1)
    texts = words(plot.svg)
    assert [w for w in texts if w in NAMES.values()] == [NAMES[name] for name in ORDER[1:]]
    assert {"client", "mean, 95 %"} <= set(texts)
    assert AMBER in plot.svg
    assert "In amber: FedAvg" in plot.caption
    plain = draw_gains(world(**flat(0.6)), LOCAL, seed=1)
    assert AMBER not in plain.svg
    assert "amber" not in plain.caption
