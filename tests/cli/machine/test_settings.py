"""KEY=VALUE arguments."""

import pytest

from cli.machine.settings import read_setting
from core.errors import ConfigError

DEFAULTS = {"name": "toy", "rounds": 3}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("rounds=4", 4),
        ("rounds=-1", -1),
        ("rounds=1e-3", 0.001),
        ("rounds=true", True),
        ("rounds='x'", "x"),
        ("rounds=a=b", "a=b"),
        ("rounds=", ""),
        ("rounds=[1, 2]", [1, 2]),
        ("rounds=" + "[" * 5000, "[" * 5000),
        ("name=4", "4"),
        ("name=true", "true"),
        ("name='x'", "'x'"),
        ("name=a=b", "a=b"),
        ("other=4", 4),
        ("other=x", "x"),
    ],
)
def test_a_value_is_toml_unless_its_default_or_its_text_is_a_string(text, value):
    key, actual = read_setting(text, DEFAULTS)
    assert key == text.split("=")[0]
    assert actual == value
    assert type(actual) is type(value)


@pytest.mark.parametrize("text", ["", "name", "name toy"])
def test_an_argument_without_a_value_is_refused_with_what_was_expected(text):
    with pytest.raises(ConfigError, match=f"^expected KEY=VALUE after a.toml, got '{text}'$"):
        read_setting(text, DEFAULTS, "KEY=VALUE after a.toml")
