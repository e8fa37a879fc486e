"""Tables of TOML as dataclasses: what is wrong is named with its place, and a remedy."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from core.errors import ConfigError
from core.tables import did_you_mean, read_table, read_values, typed


@dataclass(frozen=True)
class Kettle:
    name: str
    max_litres: float
    lids: int = 1
    boils: bool = False
    colour: Literal["red", "blue"] = "red"
    owners: tuple[str, ...] = ("*",)
    parts: tuple[tuple[str, str], ...] = ()
    marks: tuple[int, ...] = field(default_factory=tuple)


TABLE = {"name": "tea", "max-litres": 2}


def test_keys_are_fields_in_kebab_case_and_absent_ones_have_their_defaults():
    kettle = read_table(Kettle, {**TABLE, "boils": True}, "kettle.toml")
    assert kettle == Kettle("tea", 2.0, boils=True)
    assert type(kettle.max_litres) is float


def test_lists_and_tables_become_tuples():
    values = read_values(Kettle, {**TABLE, "owners": ["ann", "bob"], "parts": {"lid": "a1", "body": ""}})
    assert values["owners"] == ("ann", "bob")
    assert values["parts"] == (("lid", "a1"), ("body", ""))


def test_fields_that_are_passed_are_no_keys():
    assert read_table(Kettle, {"max-litres": 1.5}, "x", name="tea") == Kettle("tea", 1.5)
    with pytest.raises(ConfigError, match="unknown key 'name'; have: max-litres, lids"):
        read_table(Kettle, TABLE, "x", name="tea")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_litres": 1}, "unknown key 'max_litres'; did you mean 'max-litres'?"),
        (
            {"zebra": 1},
            "unknown key 'zebra'; have: name, max-litres, lids, boils, colour, owners, parts, marks",
        ),
        ({"name": 3}, "name must be str, got 3 (int)"),
        ({"name": "a\0b"}, "name must be str, got 'a\\x00b' (str)"),
        ({"max-litres": "2"}, "max-litres must be float, got '2' (str)"),
        ({"max-litres": True}, "max-litres must be float, got True (bool)"),
        ({"max-litres": 10**400}, "max-litres must be float, got 1000"),
        ({"lids": 1.0}, "lids must be int, got 1.0 (float)"),
        ({"lids": True}, "lids must be int, got True (bool)"),
        ({"boils": 1}, "boils must be bool, got 1 (int)"),
        ({"colour": "green"}, "colour must be one of red | blue, got 'green' (str)"),
        ({"colour": ["red"]}, "colour must be one of red | blue, got ['red'] (list)"),
        ({"owners": "ann"}, "owners must be a list of strings, got 'ann' (str)"),
        ({"owners": ["ann", 1]}, "owners must be a list of strings, got ['ann', 1] (list)"),
        ({"owners": ["a\0b"]}, "owners must be a list of strings, got ['a\\x00b'] (list)"),
        ({"parts": ["lid"]}, "parts must be a table of name = \"text\", got ['lid'] (list)"),
        ({"parts": {"lid": 1}}, "parts must be a table of name = \"text\", got {'lid': 1} (dict)"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_place(change, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(f'kettle.toml: {message}')}"):
        read_table(Kettle, {**TABLE, **change}, "kettle.toml")


def test_a_missing_key_is_named_with_its_place():
    with pytest.raises(ConfigError, match=r"^\[a\.b\]: the key 'max-litres' is missing$"):
        read_table(Kettle, {"name": "tea"}, "[a.b]")


def test_what_is_no_table_is_refused():
    with pytest.raises(ConfigError, match=r"^x: expected a table, got \['tea'\]$"):
        read_table(Kettle, ["tea"], "x")


def test_without_a_place_the_key_comes_first():
    with pytest.raises(ConfigError, match=r"^lids must be int"):
        read_values(Kettle, {**TABLE, "lids": "2"})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", str),
        (0, int),
        (0.0, float),
        (False, bool),
        ([], tuple[str, ...]),
        ({}, tuple[tuple[str, str], ...]),
    ],
)
def test_an_empty_value_is_a_value(value: Any, expected: Any):
    assert not typed("key", value, expected)


def test_the_nearest_choices_are_named():
    assert did_you_mean("fedavgg", ["fedavg", "local"]) == "did you mean 'fedavg'?"
    assert (
        did_you_mean("a_proj", iter(["q_proj", "k_proj", "head"]), most=2)
        == "did you mean 'q_proj' or 'k_proj'?"
    )
    assert did_you_mean("zebra", ["fedavg", "local"]) == ""
