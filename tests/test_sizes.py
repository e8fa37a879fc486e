"""No Python file of the repository is longer than MOST lines."""

import subprocess

import pytest

from tests.paths import ROOT

MOST = 300


def test_no_file_is_longer_than_the_limit() -> None:
    listing = subprocess.run(["git", "ls-files", "-z", "*.py"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("no git checkout")
    paths = {name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()}
    assert len(paths) > 100
    lengths = {name: (ROOT / name).read_text(encoding="utf-8").count("\n") for name in paths}
    assert {name: length for name, length in lengths.items() if length > MOST} == {}
