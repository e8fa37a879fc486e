"""Give every test run its own ACCORD_HOME, so that no old cache can make a test pass."""

import os
import shutil
import tempfile

os.environ["ACCORD_HOME"] = HOME = tempfile.mkdtemp(prefix="accord-tests-")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_unconfigure(config) -> None:
    shutil.rmtree(HOME, ignore_errors=True)
