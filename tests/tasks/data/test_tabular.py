"""Files with named columns: what a cell means, and damaged files, which are refused without quoting a value."""

import gzip
import json

import pytest

from core.errors import ConfigError, DataError
from tasks.data.base import load
from tasks.data.tabular import Tabular

HEADER = "prompt,completion,label,client_id\n"


def table_of(path, on_bad_row: str = "error"):
    return load(Tabular(str(path)), 0, 1, on_bad_row)


def test_labels_and_owners_are_read_from_csv(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text(HEADER + "p,5,TRUE,ann\n\nq,None,false,bob\n")
    entries = table_of(file).entries
    assert [(e.row["completion"], e.row["label"], e.owner) for e in entries] == [
        ("5", True, "ann"),
        ("None", False, "bob"),
    ]


def test_a_row_is_named_by_its_first_line(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text(HEADER + '"p\n\nq",a,true,\np,b,maybe,\np,c\n')
    table = table_of(file, "skip")
    assert len(table.entries) == 1
    assert sorted(table.first.values()) == ["a.csv line 5", "a.csv line 6"]


def test_a_json_file_may_hold_lines(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"prompt": "p", "completion": "a"}\n{"prompt": "q", "completion": "b"}\n')
    assert [e.row["prompt"] for e in table_of(file).entries] == ["p", "q"]


def test_conversations_are_read_from_json(tmp_path):
    row = {
        "prompt": [{"role": "user", "content": "q"}],
        "completion": [{"role": "assistant", "content": "a"}],
    }
    (tmp_path / "a.json").write_text(json.dumps([row]))
    assert table_of(tmp_path / "a.json").entries[0].row == row


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.csv", b'prompt,completion\np,"marker', ["line 2", "double"]),
        ("a.csv", b"prompt,completion\nmarker,\xff\n", ["UTF-8"]),
        ("a.csv", b"prompt,completion,prompt\nmarker,a,b\n", ["twice"]),
        ("a.csv", b"PAR1\x15\x04", ["Parquet"]),
        ("a.tsv", gzip.compress(b"prompt\tcompletion\nmarker\ta\n" * 99)[:-9], ["gzip"]),
        ("a.json", b'[{"prompt": "marker"', ["array"]),
        ("a.json", b"PK\x03\x04marker", ["zip"]),
        ("a.parquet", b"PAR1marker", ["Parquet"]),
        ("a.csv", b"", ["no row"]),
        ("a.json", b"[]", ["no row"]),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_not_quoted(tmp_path, name, content, named):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        table_of(tmp_path / name, "skip")
    assert all(part in str(error.value) for part in (name, *named))
    assert "marker" not in str(error.value)
    assert "\n" not in str(error.value)
    assert name not in error.value.outside()


@pytest.mark.parametrize("path", ["", "rows.txt", "nowhere.csv"])
def test_a_path_that_names_no_readable_file_is_refused(tmp_path, path):
    with pytest.raises(ConfigError, match=path or r"data\.path"):
        table_of(tmp_path / path if path else "")
