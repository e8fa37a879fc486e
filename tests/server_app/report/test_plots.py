"""The plots of a report: their contents, and when they are omitted."""

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from server_app.report import plots
from server_app.report.reading import Run, read_run
from tests.server_app.report.sample import (
    dpo_record,
    dpo_run,
    grouped_record,
    selector_record,
    sft_record,
    write_run,
)


def words(svg: str) -> list[str]:
    return [
        "".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter() if "text" in node.tag
    ]


def test_a_preference_run_has_four_plots_with_every_line_named(tmp_path):
    drawn = {plot.name: plot for plot in plots.plots(read_run(dpo_run(tmp_path)))}
    assert list(drawn) == ["accuracy", "loss", "bytes", "time"]
    named = {"mean", "worst client", "all clients", "base model", "longer answer wins"}
    assert named <= set(words(drawn["accuracy"].svg))
    assert {"load", "train", "wire", "aggregate", "evaluate"} <= set(words(drawn["time"].svg))
    assert {"clients to server", "server to clients"} <= set(words(drawn["bytes"].svg))


def test_a_run_without_records_has_no_plots(tmp_path):
    assert plots.plots(Run(dir=tmp_path, config={}, manifest={})) == []


def test_sft_draws_token_accuracy_and_held_out_loss_without_baselines(tmp_path):
    run = read_run(write_run(tmp_path, [sft_record(r) for r in range(3)], task="sft"))
    accuracy, loss = plots.plots(run)  # no bytes, no seconds: no such plots
    assert accuracy.title == "Token accuracy by round"
    assert "longer answer wins" not in words(accuracy.svg)
    assert "held-out, mean" in words(loss.svg)


def test_a_selector_run_draws_its_pairs(tmp_path):
    run = read_run(write_run(tmp_path, [selector_record(r) for r in range(3)], task="selector"))
    drawn = plots.accuracy(run)
    assert drawn is not None
    assert "picks" in drawn.caption
    assert "longer answer wins" in words(drawn.svg)


GROUPS = [None, "0120120.", "01201201", None]
TRUTH = {str(c): c % 3 for c in range(8)}


def grouped(path: Path, truth: dict[str, int]) -> list[str]:
    """The words of the groups' plot, from the top left, of clients that are in the groups of GROUPS."""
    records = [grouped_record(rnd, groups) for rnd, groups in enumerate(GROUPS)]
    records[3]["route"] = records[2]["route"]  # a training round repeats it
    drawn = plots.clusters(read_run(write_run(path, records, truth=truth)))
    assert drawn is not None
    return words(drawn.svg)


def test_every_cell_of_a_grouping_names_its_group(tmp_path):
    """Seven clients in the first grouping and eight in the second; the round after it is none."""
    texts = grouped(tmp_path, TRUTH)
    assert [texts.count(name) for name in ("c0", "c1", "c2")] == [3 + 3 + 1, 2 + 3 + 1, 2 + 2 + 1], (
        "and the legend"
    )
    assert [w for w in texts if w.endswith("%")] == ["100 %", "100 %"]
    assert [w for w in texts if w.startswith("type")] == ["type 0", "type 1", "type 2"]
    clients = [int(w) for w in texts if w.isdigit()][-8:]
    assert clients == [0, 3, 6, 1, 4, 7, 2, 5], "by type"
    swapped = grouped(tmp_path / "b", {**TRUTH, "0": 1})
    assert [w for w in swapped if w.endswith("%")] == ["86 %", "88 %"]


def test_groups_are_drawn_without_planted_types(tmp_path):
    texts = grouped(tmp_path, {})
    assert [int(w) for w in texts if w.isdigit()][-8:] == list(range(8))
    assert not [w for w in texts if "type" in w or "%" in w]


def test_many_clients_are_drawn_without_names(tmp_path):
    record = grouped_record(1, "01" * 30)
    drawn = plots.clusters(read_run(write_run(tmp_path, [record])))
    assert drawn is not None
    assert words(drawn.svg).count("c0") == 1, "the legend's"


def test_only_some_of_many_groupings_are_labelled(tmp_path):
    records = [grouped_record(rnd, "01230123") for rnd in range(1, 26)]
    drawn = plots.clusters(read_run(write_run(tmp_path, records)))
    assert drawn is not None
    assert words(drawn.svg).count("c0") == 1
    rounds = [int(w) for w in words(drawn.svg) if w.isdigit()]
    assert rounds[: -len(range(8))] == list(range(1, 26, 3))


def test_a_run_without_groups_has_no_plot_of_them(tmp_path):
    assert plots.clusters(read_run(dpo_run(tmp_path))) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_diverged_loss_is_a_gap(tmp_path, bad):
    records = [dpo_record(r) for r in range(4)]
    records[2]["train"]["mean"]["loss"] = bad
    records[2]["train"]["clients"]["3"]["loss"] = bad
    drawn = plots.losses(read_run(write_run(tmp_path, records)))
    assert drawn is not None
    assert not {"nan", "inf"} & set(drawn.svg.replace('"', " ").split())


def test_bytes_are_summed_over_the_rounds(tmp_path):
    """1, 2 and 3 MB of up and nothing down end at 6 MB, so the axis has a 6 MB tick."""
    records = [{"round": r, "bytes_up": 10**6 * (r + 1), "bytes_down": 0} for r in range(3)]
    drawn = plots.traffic(
        read_run(write_run(tmp_path, [{"failed": {}, "participants": [], **r} for r in records]))
    )
    assert drawn is not None
    assert "6 MB" in words(drawn.svg)
    assert "8 MB" not in words(drawn.svg)


def test_the_same_run_gives_the_same_bytes(tmp_path):
    run = read_run(dpo_run(tmp_path))
    assert plots.plots(run) == plots.plots(run)


def test_a_themed_plot_has_no_colour_of_its_own(tmp_path):
    themed = plots.themed(plots.plots(read_run(dpo_run(tmp_path)))[0].svg)
    assert themed.startswith("<svg")
    assert "var(--blue)" in themed
    assert "#0072b2" not in themed
    assert "#ffffff" not in themed
