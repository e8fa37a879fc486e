"""RLFT in report, terminal and headline: known numbers, the alarm, and nothing where nothing was measured."""

import json
from pathlib import Path

import pytest

from server_app.report.documents import write_report
from server_app.report.headline import headline
from server_app.report.reading import read_run
from server_app.report.rlft import best_of_n, epochs, hacking_curve, labels, rlft_plots
from server_app.report.summary import summary_lines
from tests.server_app.report.sample import selector_record, write_run

HACKED = [(0.5, 0.5), (0.75, 0.625), (0.875, 0.5), (1.0, 0.25)]


def policy(shares: list[tuple[float, float]], *, judge: str = "judge/win_rate", best: int = 1) -> dict:
    """Epochs of (signal, judge) win rates over 24 prompts."""
    records = []
    for epoch, (signal, judged) in enumerate(shares):
        records.append(
            {"epoch": epoch, "signal/win_rate": signal, "signal/n": 24.0, "kl": 0.1 * epoch, "tokens": 9.5}
        )
        records[-1] |= {judge: judged, "judge/n": 24.0} if judge else {}
        records[-1] |= {"turn": 0, "pairs": 430, "loss": 0.6, "rewards/margins": 0.2} if epoch else {}
    turn = {
        "turn": 0,
        "pairs": 430,
        "left_out": {"no preference": 2},
        "label_confidence": 0.8,
        "agreement": 0.9,
    }
    curve = [
        {
            f"{method}/{scorer}/win_rate": 0.5 + 0.1 * n
            for method in ("knockout", "round_robin")
            for scorer in ("judge", "signal")
        }
        | {"n": n}
        for n in (1, 2)
    ]
    return {"epochs": records, "best": best, "turned": best, "labels": [turn], "best_of_n": curve}


def run_with(parent: Path, **policies: dict) -> Path:
    folder = write_run(parent, [selector_record(rnd) for rnd in range(3)], task="selector")
    (folder / "rlft").mkdir()
    (folder / "rlft" / "record.json").write_text(json.dumps({"judge": "truth", "policies": policies}))
    return folder


def test_the_report_shows_every_policy_and_warns_of_reward_hacking(tmp_path):
    hacked, calm = policy(HACKED), policy(HACKED[:2]) | {"turned": None}
    folder = run_with(tmp_path, c0=calm, population=hacked)
    write_report(folder)
    text = (folder / "report.md").read_text()
    alarm = "Policy population: reward hacking: after epoch 1 the held-out judgement fell"
    assert alarm in text
    assert "Policy c0: reward hacking" not in text
    assert alarm in " ".join(" ".join(summary_lines(folder)).split())
    table = epochs(read_run(folder))
    assert [row[:2] for row in table.rows] == [("population", str(i)) for i in range(4)] + [
        ("c0", "0"),
        ("c0", "1"),
    ]
    assert table.rows[1] == (
        "population", "1", "430", "0.6", "0.2", "75.0 %", "62.5 %", "0.1", "9.5", "kept, judgement falls afterwards"
    )  # fmt: skip
    assert table.rows[0][2:5] == ("-", "-", "-")
    assert labels(read_run(folder)).rows[0] == (
        "population",
        "0",
        "430",
        "80.0 %",
        "90.0 %",
        "-",
        "2 no preference",
    )
    assert {"policy.svg", "best-of-n.svg"} <= {p.name for p in (folder / "plots").iterdir()}
    assert "Best of n" in (folder / "report.html").read_text()


def test_the_headline_has_the_best_epoch_with_its_interval(tmp_path):
    """62.5 % of 24 prompts; Wilson's interval from 42.7 to 78.8 %."""
    estimates = {e.name: e for e in headline(read_run(run_with(tmp_path, population=policy(HACKED))))}
    best = estimates["Policy population: win rate (judge)"]
    assert (best.value, best.n, best.of) == (0.625, 24, "prompts")
    assert (best.low, best.high) == pytest.approx((0.427, 0.788), abs=1e-3)
    assert estimates["Policy population: win rate (signal)"].value == 0.75


def test_without_a_judge_there_is_none(tmp_path):
    run = read_run(
        run_with(tmp_path, population=policy(HACKED, judge="") | {"turned": None, "best_of_n": []})
    )
    assert {row[6] for row in epochs(run).rows} == {"-"}
    assert not [e for e in headline(run) if "judge" in e.key]
    assert best_of_n(run) is None
    plot = hacking_curve(run)
    assert plot is not None
    assert "all, judge" not in plot.svg
    assert "all, selectors" in plot.svg


def test_public_pairs_are_named_as_such(tmp_path):
    run = read_run(run_with(tmp_path, population=policy(HACKED, judge="judge/accuracy")))
    assert [e.of for e in headline(run) if e.name == "Policy population: public pairs"] == ["rows"]


def test_a_run_without_policies_shows_none(tmp_path):
    run = read_run(write_run(tmp_path, [selector_record(0)]))
    assert rlft_plots(run) == []
    assert epochs(run).rows == labels(run).rows == ()


def test_the_vote_of_all_selectors_is_reported_next_to_each_clients_own(tmp_path):
    records = [selector_record(rnd) for rnd in range(3)]
    for client, scored in records[2]["eval"]["clients"].items():
        scored |= {"vote/accuracy": 0.75 if client == "3" else 0.875, "order_consistency": 0.5, "ece": 0.1}
    estimates = {e.key: e for e in headline(read_run(write_run(tmp_path, records, task="selector")))}
    assert estimates["population"].value == pytest.approx((7 * 0.875 + 0.75) / 8)
    assert estimates["population"].low is not None
    assert (estimates["population worst"].name, estimates["population worst"].value) == (
        "Vote, worst client (3)",
        0.75,
    )
    assert (estimates["orders"].value, estimates["ece"].value) == (0.5, pytest.approx(0.1))
    assert estimates["after"].value != estimates["population"].value
