"""Every preset parses: none can rot."""

from pathlib import Path

import pytest

import accord

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted((ROOT / "presets").glob("*.toml")), ids=lambda p: p.name)
def test_a_preset_parses_and_says_what_it_is(path):
    asked = accord.request([path.name])
    assert asked.keys, "a preset changes something"
    assert path.read_text().startswith("# ")


def test_a_word_overrides_a_preset():
    asked = accord.request(["kto-toy.toml", "task.reference-point=batch", "federation.num-supernodes=3"])
    assert asked.keys["task.name"] == "kto"
    assert asked.keys["task.reference-point"] == "batch"
    assert asked.federation["num-supernodes"] == 3
    assert asked.keys["strategy.min-available-nodes"] == 3
