"""Run docs/extending.md: its files, in a copy of the project, pass their own tests and the contract tests."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

BLOCK = re.compile(r"^```\w+ file=(\S+)\n(.*?)^```$", re.M | re.S)
DIFF = re.compile(r"^```diff\n(.*?)^```$", re.M | re.S)
NEW = re.compile(r"^\+\+\+ b/(tests/\S+)$", re.M)
CONFIG = "[tool.flwr.app.config]\n"


PAGE = (ROOT / "docs" / "extending.md").read_text()


def copied(tmp_path: Path) -> Path:
    """A copy of the project."""
    copy = tmp_path / "accord"
    ignore = shutil.ignore_patterns(".venv*", ".git", "runs", "__pycache__", ".pytest_cache", "federation")
    shutil.copytree(ROOT, copy, ignore=ignore)
    return copy


def run_tests(copy: Path, tests: list[str]) -> None:
    env = {**os.environ, "ACCORD_HOME": str(copy.parent / "home")}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=copy, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_the_diffs_apply_and_pass_the_tests_that_they_add(tmp_path):
    copy, diffs = copied(tmp_path), DIFF.findall(PAGE)
    assert len(diffs) == 6
    for diff in diffs:
        applied = subprocess.run(["git", "apply", "-"], cwd=copy, input=diff, capture_output=True, text=True)
        assert applied.returncode == 0, f"{diff[:80]}: {applied.stderr}"
    added = [name for diff in diffs for name in NEW.findall(diff)]
    assert len(added) == len(diffs)
    run_tests(
        copy,
        [
            *added,
            "tests/cli/site/policy/test_rules.py",
            "tests/core/test_wire.py",
            "tests/core/test_config.py",
            "tests/test_imports.py",
        ],
    )


@pytest.mark.slow
def test_each_example_is_one_file_its_test_and_its_keys(tmp_path):
    blocks = BLOCK.findall(PAGE)
    files = [name for name, _ in blocks if name.endswith(".py")]
    assert sum(not name.startswith("tests/") for name in files) == 4, (
        "a strategy, a task, a source, a benchmark"
    )
    copy = copied(tmp_path)
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
    run_tests(copy, [*tests, "tests/test_imports.py"])
    env = {**os.environ, "ACCORD_HOME": str(tmp_path / "home")}
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
