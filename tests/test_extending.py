"""Run docs/extending.md: its files, in a copy of the project, pass their own tests and the contract tests."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.paths import ROOT

BLOCK = re.compile(r"^```\w+ file=(\S+)\n(.*?)^```$", re.M | re.S)
CONFIG = "[tool.flwr.app.config]\n"


@pytest.mark.slow
def test_each_example_is_one_file_its_test_and_its_keys(tmp_path):
    blocks = BLOCK.findall((ROOT / "docs" / "extending.md").read_text())
    files = [name for name, _ in blocks if name.endswith(".py")]
    assert sum(not name.startswith("tests/") for name in files) == 4, (
        "a strategy, a task, a source, a benchmark"
    )
    copy = tmp_path / "accord"
    ignore = shutil.ignore_patterns(".venv", ".git", "runs", "__pycache__", ".pytest_cache", "federation")
    shutil.copytree(ROOT, copy, ignore=ignore)
    for name, text in blocks:
        path = copy / name
        if name == "pyproject.toml":
            page = path.read_text()
            assert CONFIG in page
            path.write_text(page.replace(CONFIG, CONFIG + text))
        else:
            assert not path.exists(), f"{name} is a new file"
            path.write_text(text)
    tests = [n for n in files if n.startswith("tests/")] + [
        "tests/test_contracts.py",
        "tests/core/test_config.py",
    ]
    env = {**os.environ, "ACCORD_HOME": str(tmp_path / "home")}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "tests/test_imports.py"],
        cwd=copy, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    listed = subprocess.run(
        [sys.executable, "accord", "list"], cwd=copy, env=env, capture_output=True, text=True
    )
    for name in ("fedsign", "simpo", "psv", "brevity", "strategy.gamma = 0.001"):
        assert name in listed.stdout, listed.stderr
    keys = [
        "run.num-server-rounds=1",
        "train.local-steps=1",
        "data.rows-per-client=8",
        "data.eval-rows-per-client=4",
    ]
    keys += ["eval.benchmarks=brevity", "federation.num-supernodes=2", f"run.dir={tmp_path / 'runs'}"]
    run = [sys.executable, "accord", "run", *keys]
    result = subprocess.run(run, cwd=copy, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    row = re.compile(r"brevity[ |]+words[ |]+\d")
    assert row.search(result.stdout)
    (folder,) = (tmp_path / "runs").iterdir()
    for name in ("report.md", "README.md"):
        assert row.search((folder / name).read_text()), name
    assert "<td>brevity</td><td>words</td>" in (folder / "report.html").read_text()
