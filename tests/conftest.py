"""Every test run has a home of its own, so that no cache of yesterday can make a test pass."""

import os
import shutil
import tempfile

os.environ["ACCORD_HOME"] = HOME = tempfile.mkdtemp(prefix="accord-tests-")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_unconfigure(config) -> None:
    shutil.rmtree(HOME, ignore_errors=True)
