"""A site's own file is read by the data source that its ending, or the site's `data-source`, names."""

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from core.config import parse
from core.errors import ConfigError
from core.plugins import names
from tasks.data.clients.own_file import own_files, own_source
from tasks.data.clients.rows import client_rows, stamp
from tasks.data.jsonl import Jsonl
from tasks.data.tabular import Tabular
from tests.paths import ROOT

ROWS = [
    {"prompt": f"Is it {n}?\n", "chosen": f'"yes", {n}\t', "rejected": "NA", "label_confidence": 0.75}
    for n in range(8)
]


def delimited(delimiter: str):
    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            table = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
            table.writeheader()
            table.writerows(ROWS)

    return write


def lines(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def zipped(write):
    def write_zipped(path: Path) -> None:
        write(path)
        path.write_bytes(gzip.compress(path.read_bytes()))

    return write_zipped


WRITERS = {
    ".jsonl": lines,
    ".jsonl.gz": zipped(lines),
    ".json": lambda path: path.write_text(json.dumps(ROWS, indent=2)),
    ".json.gz": zipped(lambda path: path.write_text(json.dumps(ROWS))),
    ".csv": delimited(","),
    ".csv.gz": zipped(delimited(",")),
    ".tsv": delimited("\t"),
    ".tsv.gz": zipped(delimited("\t")),
    ".parquet": lambda path: parquet.write_table(pa.Table.from_pylist(ROWS), path),
}


def rows_of(path: Path, reader: str = ""):
    config = parse({"data.source": "jsonl", "data.eval-fraction": 0.0})
    return client_rows(config, config.task_choice.build(), 0, 1, path=str(path), reader=reader)


@pytest.mark.parametrize("ending", WRITERS)
def test_every_ending_gives_the_same_rows(tmp_path, ending):
    file = tmp_path / f"North{ending.upper()}"
    WRITERS[ending](file)
    rows = rows_of(file)
    assert rows.train == ROWS
    assert rows.columns.used == ("prompt", "chosen", "rejected", "label_confidence")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]  # no copy of the rows


def test_every_declared_ending_is_tested_and_belongs_to_one_source():
    declared = [ending for source in names("tasks.data") for ending in own_files(source)]
    assert len(set(declared)) == len(declared)
    assert {*own_files("jsonl"), *own_files("tabular")} - {"/"} == WRITERS.keys()


@pytest.mark.parametrize("name", ["rows.xlsx", "rows", "rows.jsonl.bak"])
def test_another_ending_is_refused_with_the_endings_that_can_be_read(tmp_path, name):
    file = tmp_path / name
    lines(file)
    with pytest.raises(ConfigError) as error:
        rows_of(file)
    assert all(part in str(error.value) for part in (name, *WRITERS, "data-source"))
    assert str(tmp_path) not in error.value.outside()
    assert name not in error.value.outside()


def test_data_source_names_the_reader_of_any_file(tmp_path):
    file = tmp_path / "rows.txt"
    lines(file)
    assert rows_of(file, "jsonl").train == ROWS
    assert isinstance(own_source(str(file.with_suffix(".jsonl")), "tabular"), Tabular)
    assert isinstance(own_source(str(tmp_path)), Jsonl)


@pytest.mark.parametrize("name", ["hub", "toy", "excel"])
def test_a_source_that_reads_no_own_file_is_refused(name):
    with pytest.raises(ConfigError) as error:
        own_source("rows.jsonl", name)
    assert all(part in str(error.value) for part in (name, "jsonl", "tabular"))


def test_finding_the_reader_of_lines_imports_no_library_that_takes_seconds():
    ask = (
        "import sys; from tasks.data.clients.own_file import own_source; own_source('rows.jsonl')\n"
        "print(sorted({'datasets', 'pyarrow', 'pandas'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_a_changed_file_is_read_again(tmp_path):
    file = tmp_path / "rows.csv"
    WRITERS[".csv"](file)
    before = stamp(parse({}), str(file))
    file.write_text("prompt,chosen,rejected\np,a,b\n")
    assert stamp(parse({}), str(file)) != before
