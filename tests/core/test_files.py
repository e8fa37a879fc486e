"""Files that people write: read, or refused in one line."""

import pytest

from core.errors import ConfigError, DataError
from core.files import read_json, read_toml


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x = [1,", b"x = " + b"[" * 3000, b"x = 1\nx = 2"])
def test_what_is_no_toml_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.toml is not TOML: [^\n]+$"):
        read_toml(tmp_path / "a.toml")


def test_a_folder_in_its_place_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        read_toml(tmp_path)
    with pytest.raises(DataError, match=r"expected JSON, .*Is a directory"):
        read_json(tmp_path, {})


def test_the_mark_of_a_windows_editor_and_its_line_ends_are_read_over(tmp_path):
    (tmp_path / "a.toml").write_bytes("\ufeffx = 'ü'\r\ny = 2\r\n".encode())
    assert read_toml(tmp_path / "a.toml") == {"x": "ü", "y": 2}


@pytest.mark.parametrize("content", ["", "{", "[]", "\ud800", "[" * 100_000])
def test_what_is_no_json_of_the_kind_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match=r"a\.json: expected JSON[^\n]+was it edited by hand\?$"):
        read_json(tmp_path / "a.json", {})
    assert read_json(tmp_path / "b.json", {}) == {}
