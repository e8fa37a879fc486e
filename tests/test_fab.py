"""The bundle that Flower ships to every client: the whole app, and nothing private."""

import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from cli.run.launch import stage
from core.plugins import names
from server_app.report.card import write_card
from server_app.report.documents import write_report
from tests.paths import ROOT
from tests.test_imports import modules_imported

PACKAGES = {"core", "strategies", "tasks", "evals", "client_app", "server_app"}


@pytest.fixture(scope="module")
def bundle() -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(build_fab_from_disk(ROOT)))


def test_the_bundle_holds_every_source_file(bundle):
    wanted = {str(p.relative_to(ROOT)) for package in PACKAGES for p in (ROOT / package).rglob("*.py")}
    assert wanted <= set(bundle.namelist())
    assert "tasks/toy_base/base.json" in bundle.namelist()
    for package in ("strategies", "tasks", "tasks.data"):
        assert all(f"{package.replace('.', '/')}/{n}.py" in bundle.namelist() for n in names(package))


def test_the_bundle_holds_nothing_else(bundle):
    extra = {n for n in bundle.namelist() if n.split("/")[0] not in PACKAGES}
    assert extra <= {"pyproject.toml", "README.md", "LICENSE", ".info/CONTENT"}
    assert {n.rsplit(".", 1)[-1] for n in bundle.namelist() if n.split("/")[0] in PACKAGES} <= {"py", "json"}


def test_the_bundle_is_small():
    """Every SuperNode receives it. The bar is 85 % of what it was with the command line and raw models in it."""
    assert len(build_fab_from_disk(ROOT)) < 1_459_892


def test_every_module_of_the_bundle_is_imported_by_an_app_or_a_plugin(bundle):
    """Directly or through others: what only the command line or a benchmark imports does not travel."""
    reached = {"server_app.main", "client_app.main"} | {
        f"{package}.{n}" for package in ("strategies", "tasks", "tasks.data", "evals") for n in names(package)
    }
    while further := set().union(*(modules_imported(source(module)) for module in reached)) - reached:
        reached |= further
    modules = {
        name for name in bundle.namelist() if name.endswith(".py") and not name.endswith("__init__.py")
    }
    assert modules - {str(source(module).relative_to(ROOT)) for module in reached} == set()


def source(module: str) -> Path:
    """The file of a module of ours, by its full name."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_accord_run_ships_the_same_bundle(tmp_path):
    """`accord run` gives Flower a copy of the sources, because Flower would read every file of a .venv."""
    staged = stage(tmp_path / "app")
    assert build_fab_from_disk(staged) == build_fab_from_disk(ROOT)
    assert sum(p.is_file() for p in staged.rglob("*")) < 250


def test_a_private_file_in_the_project_is_not_in_the_bundle(tmp_path):
    """By default Flower ships every JSON file below the project's folder."""
    copy = tmp_path / "accord"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "runs", "__pycache__"))
    (copy / "data.jsonl").write_text('{"prompt": "private"}\n')
    (copy / "tasks" / "data" / "mine.jsonl").write_text('{"prompt": "private"}\n')
    (copy / "runs").mkdir()
    (copy / "runs" / "metrics.json").write_text("{}")
    names_inside = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(copy))).namelist()
    assert not [n for n in names_inside if "mine.jsonl" in n or n.startswith("runs") or n == "data.jsonl"]


REPORT = """
import sys
from pathlib import Path

bundle, run = map(Path, sys.argv[1:])
# an editable install puts a checkout on sys.path
sys.path[:] = [str(bundle), *(entry for entry in sys.path if not (Path(entry) / "server_app").is_dir())]
from server_app.report.card import write_card
from server_app.report.documents import write_report

write_report(run)
write_card(run)
ours = {p.name for p in bundle.iterdir()}
places = {Path(m.__file__) for name, m in sys.modules.items() if name.split(".")[0] in ours and m.__file__}
assert places and all(bundle in place.parents for place in places), places
"""


@pytest.mark.slow
def test_the_unpacked_bundle_alone_writes_a_report(bundle, tmp_path):
    """From an empty folder, the same files as this checkout writes."""
    app, run = tmp_path / "app", tmp_path / "run"
    bundle.extractall(app)
    shutil.copytree(ROOT / "tests" / "saved_run" / "server", run)
    before = set(run.rglob("*"))
    (tmp_path / "empty").mkdir()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", REPORT, str(app), str(run)]
    result = subprocess.run(command, cwd=tmp_path / "empty", env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    files = {path: path.read_bytes() for path in set(run.rglob("*")) - before if path.is_file()}
    plots = {f"plots/{name}.svg" for name in ("accuracy", "bytes", "loss", "time")}
    assert {str(p.relative_to(run)) for p in files} == {"README.md", "report.html", "report.md", *plots}
    write_report(run)
    write_card(run)
    assert {path: path.read_bytes() for path in files} == files
