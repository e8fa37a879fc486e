"""Who may import whom: docs/architecture.md, held by reading the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"core", "tasks", "strategies", "evals", "client_app", "server_app", "benchmarks", "tests", "accord"}
MAY = {
    "core": {"core"},
    "tasks": {"core", "tasks"},
    "strategies": {"core", "strategies"},
    "evals": {"core", "evals", "tasks"},
    "client_app": {"core", "tasks", "strategies", "client_app"},
    "server_app": {"core", "tasks", "strategies", "evals", "server_app"},
}
ONLY_IN = {
    "flwr": {
        "core/frame.py",
        "core/waits.py",
        "core/wire.py",
        "strategies/base.py",
        "strategies/kit/session.py",
        "client_app/main.py",
        "client_app/node.py",
        "server_app/main.py",
    },
    "peft": {
        "tasks/kit/attach.py",
        "tasks/kit/base_model.py",
        "tasks/kit/model.py",
        "tasks/kit/quantized.py",
    },
}
FILES = [p for package in MAY for p in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            out.add(node.module)
    return {name.split(".")[0] for name in out}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    package = path.relative_to(ROOT).parts[0]
    assert (imports(path) & OURS) <= MAY[package]


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_framework_stays_at_its_door(library):
    assert {str(p.relative_to(ROOT)) for p in FILES if library in imports(p)} <= ONLY_IN[library]


def test_datasets_is_imported_under_tasks_data_only():
    """And in the TRL engine, whose trainers take nothing else."""
    users = {str(p.relative_to(ROOT)) for p in FILES if "datasets" in imports(p)}
    assert all(u.startswith("tasks/data/") or u == "tasks/kit/trl_engine.py" for u in users), users


def test_no_ignore_line_can_drop_a_source_folder():
    """Flower builds its bundle by .gitignore: an unanchored `data/` would drop tasks/data/ without a word."""
    lines = [
        line for line in (ROOT / ".gitignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    names = {p.name for package in MAY for p in (ROOT / package).rglob("*") if p.is_dir()} - {"__pycache__"}
    assert not [line for line in lines if not line.startswith("/") and line.strip("/*") in names]
