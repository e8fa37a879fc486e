"""What `accord doctor` finds at a site: each thing that is wrong, in a line of its own, and no row in any."""

import gzip
import socket

import pytest

from cli.machine.checks import disk
from cli.site.site_checks import checks

GOOD = """address = "unix:s.sock"
partition-id = 1
num-partitions = 3
state-dir = "state"
data-path = "rows.jsonl"
"""
SECRET = "marker-51c2"


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site.toml").write_text(GOOD)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 3)
    return tmp_path / "site.toml"


def found(site) -> dict[str, tuple[str, str]]:
    return {check.subject: (check.verdict, check.message) for check in checks(site)}


def test_a_site_in_order_has_nothing_wrong(site):
    told = found(site)
    assert not [what for what, (verdict, _) in told.items() if verdict == "no"]
    assert told["rows"] == ("ok", f"3 rows in {site.parent / 'rows.jsonl'}")
    assert told["site"][1] == f"client 1 of 3, at unix:{site.parent}/s.sock"
    assert told["process"][0] == "note"
    assert told["policy"][0] == "note"


def test_a_process_that_listens_is_found(site):
    with socket.socket(socket.AF_UNIX) as line:
        line.bind(str(site.parent / "s.sock"))
        line.listen()
        assert found(site)["process"][0] == "ok"


@pytest.mark.parametrize(
    ("text", "what", "said"),
    [
        (GOOD.replace("num-partitions = 3", "num-partitions = 1"), "site", "partition-id must be from 0"),
        (GOOD.replace("rows.jsonl", "other.jsonl"), "site", "no such file"),
        (GOOD + 'policy = "none.toml"\n', "policy", "none.toml"),
        (GOOD.replace("rows.jsonl", "empty.jsonl"), "rows", "holds no usable row"),
    ],
)
def test_what_would_fail_a_run_is_named(site, text, what, said):
    (site.parent / "empty.jsonl").write_text("\n")
    site.write_text(text)
    verdict, why = found(site)[what]
    assert verdict == "no"
    assert said in why


def test_a_bad_row_is_told_by_its_number_alone(site):
    with (site.parent / "rows.jsonl").open("a") as rows:
        rows.write(f'["{SECRET}"]\n{{"prompt": "{SECRET}\n')
    told = found(site)
    said = "3 usable rows, 2 unusable ones; rows.jsonl line 4: is no JSON object"
    assert told["rows"] == ("note", said)
    assert SECRET not in str(told)


def test_a_place_that_cannot_be_written_is_wrong(tmp_path):
    (tmp_path / "file").write_text("")
    assert disk("state", tmp_path / "file" / "state").verdict == "no"
    assert disk("state", tmp_path / "new" / "state").verdict in ("ok", "note")


def test_rows_are_read_as_a_run_reads_them(site):
    """gzip, a mark of Windows editors, and the separators that JSON lets stand in a string."""
    row = '{"prompt": "a\u2028b", "chosen": "b\x85", "rejected": "c"}\n'
    (site.parent / "rows.jsonl").write_bytes(("\ufeff" + row * 3).encode())
    assert found(site)["rows"][0] == "ok"
    (site.parent / "rows.jsonl.gz").write_bytes(gzip.compress((row * 4).encode()))
    site.write_text(GOOD.replace("rows.jsonl", "rows.jsonl.gz"))
    assert found(site)["rows"] == ("ok", f"4 rows in {site.parent / 'rows.jsonl.gz'}")
    (site.parent / "rows.jsonl.gz").write_bytes(gzip.compress(b"x")[:-4])
    assert found(site)["rows"][0] == "no"


def test_rows_whose_columns_no_run_can_use_are_told(site):
    (site.parent / "rows.jsonl").write_text('{"question": "a"}\n' * 3)
    verdict, said = found(site)["rows"]
    assert verdict == "no"
    assert "misses columns" in said


def test_rows_that_no_parser_takes_are_counted(site):
    with (site.parent / "rows.jsonl").open("a") as rows:
        rows.write(f'{{"prompt": "{SECRET} \\ud800", "chosen": "b", "rejected": "c"}}\n')
        rows.write(f'{{"prompt": "{SECRET}", "id": {"7" * 5000}}}\n')
        rows.write("[" * 100_000 + "\n")
    told = found(site)
    assert told["rows"][1].startswith(
        "3 usable rows, 3 unusable ones; rows.jsonl line 4: prompt holds half of"
    )
    assert SECRET not in str(told)


def test_columns_and_files_that_are_left_out_are_listed(site):
    (site.parent / "rows").mkdir()
    (site.parent / "rows" / "a.jsonl").write_text(
        '{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1}\n'
    )
    (site.parent / "rows" / "b.csv").touch()
    site.write_text(GOOD.replace("rows.jsonl", "rows"))
    told = found(site)
    assert told["columns"] == ("ok", "prompt, chosen, rejected; ignored: margin")
    assert told["files"][1].endswith("b.csv")
