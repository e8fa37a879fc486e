"""The bundle that Flower ships to every client: the whole app, and nothing private."""

import io
import zipfile

import pytest
from flwr.cli.build import build_fab_from_disk

from cli.run.launch import stage
from core.plugins import names
from tests.paths import ROOT

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


def test_the_bundle_is_small(bundle):
    assert sum(i.compress_size for i in bundle.infolist()) < 5_000_000


def test_accord_run_ships_the_same_bundle(tmp_path):
    """`accord run` gives Flower a copy of the sources, because Flower would read every file of a .venv."""
    staged = stage(tmp_path / "app")
    assert build_fab_from_disk(staged) == build_fab_from_disk(ROOT)
    assert sum(p.is_file() for p in staged.rglob("*")) < 250


def test_a_private_file_in_the_project_is_not_in_the_bundle(tmp_path):
    """By default Flower ships every JSON file below the project's folder."""
    import shutil

    copy = tmp_path / "accord"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "runs", "__pycache__"))
    (copy / "data.jsonl").write_text('{"prompt": "private"}\n')
    (copy / "tasks" / "data" / "mine.jsonl").write_text('{"prompt": "private"}\n')
    (copy / "runs").mkdir()
    (copy / "runs" / "metrics.json").write_text("{}")
    names_inside = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(copy))).namelist()
    assert not [n for n in names_inside if "mine.jsonl" in n or n.startswith("runs") or n == "data.jsonl"]
