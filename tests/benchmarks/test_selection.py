"""The figures that the comparison of selectors reads from a run, and how it equalises budgets."""

from pathlib import Path

import pytest

from benchmarks.selection import Cell, applies, cell, same_bytes
from server_app.report.reading import read_run
from tests.server_app.report.sample import CLIENTS, grouped_record, selector_record, write_run


def read_cell(path: Path, strategy: str, **manifest) -> Cell:
    """The cell of a run of three rounds, of which the second assigns clients to groups 0, 1, 2, 0, ..."""
    records = [grouped_record(r, "01201201" if r == 2 else None) for r in range(4)]
    return cell(read_run(write_run(path, records, config={"strategy.name": strategy}, **manifest)))


def test_a_cell_has_the_scores_of_the_last_round_and_the_cost_of_all(tmp_path):
    last = selector_record(3)["eval"]["clients"].values()
    got = read_cell(tmp_path, "fedbiscuit", truth={str(c): c % 3 for c in range(CLIENTS)})
    right = [100 * m["accuracy"] for m in last]
    assert got.scores["personal"] == pytest.approx(sum(right) / CLIENTS)
    assert got.scores["worst"] == pytest.approx(min(right))
    assert got.scores["base"] == pytest.approx(50.0)
    assert (got.scores["purity"], got.scores["rand"]) == (100.0, 100.0)
    assert "population" not in got.scores, "it was not measured"
    assert got.steps == 3 * CLIENTS * 10
    assert got.up == sum(selector_record(r)["bytes_up"] for r in range(4))
    assert not {"purity", "rand"} & read_cell(tmp_path / "b", "fedbiscuit").scores.keys()


def test_the_client_with_all_rows_takes_the_steps_of_all_clients(tmp_path):
    records = [{**selector_record(r), "participants": [0] if r else []} for r in range(4)]
    run = read_run(write_run(tmp_path, records, config={"strategy.name": "centralized"}))
    assert cell(run).steps == 3 * CLIENTS * 10


def test_fedbis_gets_rounds_for_the_bytes_of_fedbiscuit():
    fedbis, fedbiscuit = Cell({}, 12, 960, 50, 50), Cell({}, 12, 960, 60, 90)
    assert same_bytes({"fedbis": fedbis, "fedbiscuit": fedbiscuit}) == 18


def test_an_option_applies_to_strategies_that_have_it():
    assert applies("strategy.race=3", "fedbiscuit")
    assert not applies("strategy.race=3", "local")
    assert applies("strategy.fraction-train=0.5", "local")
    assert applies("data.types=3", "local")
