"""What the comparison of selectors reads from a run, and how it makes budgets equal."""

from pathlib import Path

import pytest

from benchmarks.selection import Cell, cell, fits, same_bytes
from server_app.report.reading import read_run
from tests.server_app.report.sample import CLIENTS, grouped_record, selector_record, write_run


def found(path: Path, strategy: str, **manifest) -> Cell:
    """Of a run of three rounds, of which the second groups the clients 0, 1, 2, 0, ..."""
    records = [grouped_record(r, "01201201" if r == 2 else None) for r in range(4)]
    return cell(read_run(write_run(path, records, config={"strategy.name": strategy}, **manifest)))


def test_a_cell_is_the_last_round_and_all_that_the_run_cost(tmp_path):
    last = selector_record(3)["eval"]["clients"].values()
    got = found(tmp_path, "fedbiscuit", truth={str(c): c % 3 for c in range(CLIENTS)})
    right = [100 * m["accuracy"] for m in last]
    assert got.scores["personal"] == pytest.approx(sum(right) / CLIENTS)
    assert got.scores["worst"] == pytest.approx(min(right))
    assert got.scores["base"] == pytest.approx(50.0)
    assert (got.scores["purity"], got.scores["rand"]) == (100.0, 100.0)
    assert "population" not in got.scores, "nobody measured it"
    assert got.steps == 3 * CLIENTS * 10
    assert got.up == sum(selector_record(r)["bytes_up"] for r in range(4))
    assert not {"purity", "rand"} & found(tmp_path / "b", "fedbiscuit").scores.keys()


def test_the_one_who_has_all_rows_takes_everybodys_steps(tmp_path):
    records = [{**selector_record(r), "participants": [0] if r else []} for r in range(4)]
    run = read_run(write_run(tmp_path, records, config={"strategy.name": "centralized"}))
    assert cell(run).steps == 3 * CLIENTS * 10


def test_fedbis_goes_on_until_its_bytes_are_those_of_fedbiscuit():
    one, several = Cell({}, 12, 960, 50, 50), Cell({}, 12, 960, 60, 90)
    assert same_bytes({"fedbis": one, "fedbiscuit": several}) == 18


def test_a_key_of_one_strategy_goes_to_those_that_have_it():
    assert fits("strategy.race=3", "fedbiscuit")
    assert not fits("strategy.race=3", "local")
    assert fits("strategy.fraction-train=0.5", "local")
    assert fits("data.types=3", "local")
