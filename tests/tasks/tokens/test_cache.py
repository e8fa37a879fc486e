"""Both caches return what was stored, and a damaged file is computed again."""

import logging
from collections import Counter
from pathlib import Path

import pytest

from tasks.base import Example
from tasks.tokens.cache import Cache, reference_key, rows_key

MADE = (
    [
        Example((1, 5), ((6, 2), (7,))),
        Example((1,), ((8, 2),), True),
        Example((1,), ((9,),), False),
        Example((1, 4), ((6,), (7,)), twin=(1, 5, 8), lengths=(3, 0), confidence=0.1),
    ],
    Counter({"too long": 2}),
)


def refuse():
    raise AssertionError("made a second time")


@pytest.mark.parametrize("made", [MADE, ([], Counter())])
def test_rows_are_encoded_once_and_read_back(tmp_path: Path, made) -> None:
    assert Cache(tmp_path).examples("k", lambda: made) == made
    assert Cache(tmp_path).examples("k", refuse) == made
    assert [p.name for p in tmp_path.iterdir()] == ["tokens-k.safetensors"]  # no temporary file is left


def test_references_accumulate_over_rounds(tmp_path: Path) -> None:
    first, second = {"ab" * 16: (-1.5, -2.25)}, {"cd" * 16: (-3.0,)}
    Cache(tmp_path).add_references("m", first)
    Cache(tmp_path).add_references("m", second)
    assert Cache(tmp_path).references("m") == first | second
    assert Cache(tmp_path).references("other") == {}


@pytest.mark.parametrize("damage", ["cut", "flip", "garbage", "empty"])
def test_a_damaged_file_is_computed_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    Cache(tmp_path).examples("k", lambda: MADE)
    Cache(tmp_path).add_references("m", {"ab" * 16: (-1.5,)})
    for file in tmp_path.iterdir():
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes({"cut": data[:-9], "flip": data, "garbage": b"x" * 99, "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert Cache(tmp_path).examples("k", lambda: MADE) == MADE
        assert Cache(tmp_path).references("m") == {}
    assert len(caplog.records) == 2
    assert Cache(tmp_path).examples("k", refuse) == MADE


def test_without_a_folder_the_cache_is_in_memory() -> None:
    cache = Cache(None)
    assert cache.examples("k", lambda: MADE) == cache.examples("k", refuse) == MADE
    cache.add_references("m", {"ab": (1.0,)})
    assert cache.references("m") == {"ab": (1.0,)}


def test_keys_depend_on_rows_and_on_settings() -> None:
    rows = [{"prompt": "a", "completion": "b", "label": True}]
    keys = {
        rows_key(rows, "kto", 64),
        rows_key(rows, "kto", 65),
        rows_key(rows * 2, "kto", 64),
        rows_key([], "kto", 64),
    }
    assert len(keys) == 4
    assert rows_key(rows, "kto", 64) == rows_key([dict(reversed(rows[0].items()))], "kto", 64)
    assert reference_key("f", "float32-none") != reference_key("f", "bfloat16-none")
