import logging

import pytest

from tests.cli.site.lab import MARKER, Lab

OWN = ("rows.jsonl", "secret.jsonl")  # the private files themselves


@pytest.fixture
def lab(tmp_path, caplog):
    """Makes sites by name; after the test no answer, no log line and no file of theirs may hold the marker."""
    made: list[Lab] = []
    caplog.set_level(logging.DEBUG)

    def make(name: str = "site", **more: object) -> Lab:
        made.append(Lab(tmp_path / name, **more))
        return made[-1]

    yield make
    assert made
    assert not [answer for one in made for answer in one.answers if MARKER.encode() in answer]
    files = [p for p in tmp_path.rglob("*") if p.is_file() and p.name not in OWN]
    assert not [p for p in files if MARKER.encode() in p.read_bytes()]
    assert MARKER not in caplog.text
