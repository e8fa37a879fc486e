"""The plots of a report: what they draw, what they leave out."""

import math
from xml.etree import ElementTree

import pytest

from server_app import plots
from server_app.reading import Run, read_run
from tests.server_app.sample import dpo_record, dpo_run, selector_record, sft_record, write_run


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
