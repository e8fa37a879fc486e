import gzip
import json
import os
from pathlib import Path

import pytest

from core.errors import ConfigError, DataError
from tasks.data.base import read
from tasks.data.jsonl import Jsonl
from tests.paths import REAL

PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}


def write(path: Path, *lines: str) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
    return path


def rows(path: Path, on_bad_row: str = "error", **options: str):
    return read(Jsonl(str(path), **options).rows(0, 1), on_bad_row)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_file_plain_or_compressed_with_blank_lines(tmp_path, name):
    table = rows(write(tmp_path / name, json.dumps(PAIR), "", json.dumps({**PAIR, "client_id": 7})))
    assert [(e.row, e.owner) for e in table.entries] == [(PAIR, ""), (PAIR, "7")]


def test_any_column_can_name_the_client(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps({**PAIR, "domain": "law", "client_id": "x"}))
    assert rows(path, client_column="domain").entries[0].owner == "law"


def test_a_folder_has_one_file_per_client(tmp_path):
    for name in ("site-b.jsonl", "site-a.jsonl.gz", "notes.txt"):
        write(tmp_path / name, json.dumps({**PAIR, "client_id": "ignored"}))
    assert [e.owner for e in rows(tmp_path).entries] == ["site-a", "site-b"]


def test_a_malformed_row_is_named_by_file_line_and_reason_and_never_quoted(tmp_path):
    path = write(tmp_path / "c3.jsonl", json.dumps(PAIR), '{"prompt": "my secret', json.dumps(PAIR), "[]")
    with pytest.raises(DataError) as error:
        rows(path)
    assert str(error.value).startswith("c3.jsonl line 2: malformed JSON: ")
    assert "1 more bad rows" in str(error.value)
    assert "secret" not in str(error.value)
    table = rows(path, "skip")
    assert len(table.entries) == 2
    assert sum(table.skipped.values()) == 2


def test_bytes_that_are_not_text_are_a_bad_row(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json.dumps(PAIR).encode() + b'\n{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl line 2: .*UTF-8"):
        rows(tmp_path / "a.jsonl")


def test_a_cut_gzip_file_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl.gz", *[json.dumps(PAIR)] * 50)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz .*gzip.* 50 lines"):
        rows(path)


def test_a_path_without_a_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no \.jsonl or \.jsonl\.gz file at .*gone\.jsonl"):
        rows(tmp_path / "gone.jsonl")
    with pytest.raises(ConfigError, match=r"no \.jsonl or"):
        rows(tmp_path)
    with pytest.raises(ConfigError, match=r"needs data\.path"):
        list(Jsonl().rows(0, 1))


def test_the_stamp_changes_with_the_file(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps(PAIR))
    before = Jsonl(str(path)).stamp()
    assert Jsonl(str(path)).stamp() == before
    os.utime(path, ns=(1, 1))
    assert Jsonl(str(path)).stamp() != before


@pytest.mark.parametrize(
    ("name", "count", "clients", "columns"),
    [
        ("tldr_workers/pairs_train", 1352, 31, "prompt chosen rejected"),
        ("polis_opinions/kto_train", 12627, 500, "prompt completion label"),
        ("jester/pairs_by_user_train", 11885, 299, "prompt chosen rejected"),
        ("ukp_convarg/pairs_by_worker_train", 32203, 173, "prompt chosen rejected"),
        ("hh_rlhf/harmless-base_train", 1714, 1, "prompt chosen rejected"),
        ("sft_general/alpaca_cleaned_1000", 1000, 1, "prompt completion"),
    ],
)
def test_real_files_are_read(name, count, clients, columns):
    """Rows and natural clients as counted in the files themselves, and no bad row in them."""
    path = REAL / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip("the shared data are not here")
    table = rows(path)
    assert len(table.entries) == count
    assert len({e.owner for e in table.entries}) == clients
    assert " ".join(table.entries[0].row) == columns
