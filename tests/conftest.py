"""Give every test run its own ACCORD_HOME, so that no old cache can make a test pass."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

os.environ["ACCORD_HOME"] = HOME = tempfile.mkdtemp(prefix="accord-tests-")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_unconfigure(config) -> None:
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture
def accord_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ACCORD_HOME of the test's own."""
    monkeypatch.setenv("ACCORD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
