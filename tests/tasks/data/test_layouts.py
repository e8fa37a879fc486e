"""Files in many layouts: each is read exactly, or refused in one line that names the place and the remedy."""

import os
from pathlib import Path

import pytest

from core.errors import AccordError
from tasks.data.base import Table, load
from tasks.data.jsonl import Jsonl
from tests.tasks.data.layouts import LINES, PAIRS, READ, REFUSED, SECRET, bit_flipped, gz, in_folder


def table(path: Path, on_bad_row: str = "error") -> Table:
    return load(Jsonl(str(path)), 0, 1, on_bad_row)


def rows(path: Path) -> list[dict[str, str]]:
    return [dict(entry.row) for entry in table(path).entries]


@pytest.mark.parametrize("layout", READ)
def test_a_layout_is_read_exactly(tmp_path: Path, layout: str) -> None:
    assert rows(READ[layout](tmp_path)) == PAIRS


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
@pytest.mark.parametrize("layout", REFUSED)
def test_a_refused_layout_is_an_error_of_one_line_with_place_and_remedy(
    tmp_path: Path, layout: str, on_bad_row: str
) -> None:
    """With `skip`, good rows are kept and one bad row is counted; no message quotes a row."""
    build, parts = REFUSED[layout]
    path = build(tmp_path)
    try:
        result = table(path, on_bad_row)
    except AccordError as error:
        message = str(error)
    else:
        assert on_bad_row == "skip"
        assert [dict(entry.row) for entry in result.entries] == PAIRS
        (where,) = set(result.first.values())
        message = f"{where}: {'; '.join(result.skipped)}"
    assert [part for part in parts if part not in message] == []
    assert "\n" not in message
    assert SECRET not in message


def test_files_that_are_not_read_are_listed(tmp_path: Path) -> None:
    build = in_folder(
        northDOTjsonl=LINES,
        northDOTcsv=b"",
        READMEDOTmd=b"",
        dataset_infoDOTjson=b"{}",
        oldSLASHxDOTjsonl=LINES,
        DOTgit=b"",
    )
    assert table(build(tmp_path)).unread == ("README.md", "dataset_info.json", "north.csv", "old/")


def test_no_row_of_a_damaged_file_is_used(tmp_path: Path) -> None:
    """A wrong checksum does not say where the damage is, so no row can be relied on, even with skip."""
    many = gz(LINES * 2000)
    (tmp_path / "north.jsonl").write_bytes(LINES)
    (tmp_path / "south.jsonl.gz").write_bytes(bit_flipped(many, len(many) - 6))
    with pytest.raises(AccordError, match=r"south\.jsonl\.gz .* 6000 lines can be read") as error:
        table(tmp_path, "skip")
    assert "south" not in error.value.outside()
    assert "the site's file" in error.value.outside()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "a.jsonl").chmod(0)
    with pytest.raises(AccordError, match=r"a\.jsonl cannot be read: Permission denied"):
        table(tmp_path)
