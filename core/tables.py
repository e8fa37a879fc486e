"""Read a TOML table into a frozen dataclass: the keys are its fields in kebab case, each checked by its type."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from core.errors import ConfigError

T = TypeVar("T")
STRINGS, PAIRS = tuple[str, ...], tuple[tuple[str, str], ...]  # fields of a list, and of a table, of strings


def read_table(cls: type[T], table: Any, where: str, **values: Any) -> T:  # Any: whatever TOML can hold
    """Return a `cls` from a table and `values`: fields that are not keys of the table.

    Raises ConfigError, which begins with `where`, for what read_values() refuses.
    """
    return cls(**read_values(cls, table, where, omit=values), **values)


def read_values(cls: type[Any], table: Any, where: str = "", *, omit: Collection[str] = ()) -> dict[str, Any]:
    """Return the values of a table by the names of the fields of `cls`.

    where: the file or the place in it, for errors. omit: fields that are not keys of the table.

    Raises ConfigError for what is not a table, an unknown key, a wrong type, and a missing key without a default.
    """
    prefix = f"{where}: " if where else ""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{prefix}expected a table, got {table!r}")
    types = get_type_hints(cls)
    by_key = {field.name.replace("_", "-"): field for field in fields(cls) if field.name not in omit}
    values = {}
    for key, value in table.items():
        if key not in by_key:
            hint = did_you_mean(key, by_key) or f"have: {', '.join(by_key)}"
            raise ConfigError(f"{prefix}unknown key {key!r}; {hint}")
        values[by_key[key].name] = typed(f"{prefix}{key}", value, types[by_key[key].name])
    for key, field in by_key.items():
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{prefix}the key {key!r} is missing")
    return values


def typed(key: str, value: Any, expected: Any) -> Any:  # Any: unchecked input; a field's type
    """Return a value as a field of the type `expected` holds it: an int as float, a list or a table as a tuple.

    Raises ConfigError for a value of another type, which includes a string with a NUL character.
    """
    converted = _converted(value, expected)
    if converted is None:
        raise ConfigError(f"{key} must be {_form(expected)}, got {value!r} ({type(value).__name__})")
    return converted


def _converted(value: Any, expected: Any) -> Any:  # None if the value is of another type
    if get_origin(expected) is Literal:
        return value if value in get_args(expected) else None
    if expected == STRINGS:
        return tuple(value) if isinstance(value, list) and all(map(_is_text, value)) else None
    if expected == PAIRS:
        is_valid = isinstance(value, Mapping) and all(map(_is_text, value.values()))
        return tuple(value.items()) if is_valid else None
    if expected is float and type(value) is int:
        with suppress(OverflowError):
            return float(value)
        return None
    return value if type(value) is expected and (expected is not str or _is_text(value)) else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _form(expected: Any) -> str:
    """What a value of this type is called in a message."""
    if get_origin(expected) is Literal:
        return f"one of {' | '.join(get_args(expected))}"
    forms = {STRINGS: "a list of strings", PAIRS: 'a table of name = "text"'}
    return forms.get(expected) or expected.__name__


def did_you_mean(word: str, choices: Iterable[str], most: int = 1) -> str:
    """Return "did you mean 'x'?", with at most so many choices that resemble a wrong word; "" if none does."""
    near = difflib.get_close_matches(word, list(choices), most)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""
