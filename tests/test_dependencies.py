"""What is imported is declared, and what is declared is imported."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata

from core import __version__
from tests.paths import ROOT

SOURCE = ("accord", "cli", "client_app", "core", "evals", "server_app", "strategies", "tasks")
OURS = {*SOURCE, "scripts", "benchmarks", "tests"}
UNSEEN = {"bitsandbytes", "matplotlib"}  # imported by peft and transformers, or by a module's name


def imported() -> set[str]:
    """Top-level modules of others that the installed packages import."""
    names = set()
    for package in SOURCE:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names.add(node.module.split(".")[0])
    return names - OURS - set(sys.stdlib_module_names)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {normal(re.split(r"[\s\[<>=;!~]", entry)[0]) for entry in project["dependencies"]}


def distributions(module: str) -> set[str]:
    return {normal(name) for name in metadata.packages_distributions().get(module, [module])}


def test_every_import_is_declared() -> None:
    assert {module for module in imported() if not distributions(module) & declared()} == set()


def test_every_dependency_is_imported() -> None:
    used = {name for module in imported() for name in distributions(module)}
    assert declared() - used - UNSEEN == set()


def test_ranges_in_the_project_and_one_version_of_each_in_the_constraints() -> None:
    pins = (ROOT / "constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    assert declared() <= {normal(pin.split("==")[0]) for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [entry for entry in project["dependencies"] if re.search(r"\w==", entry)]


def test_the_hub_hears_of_no_usage() -> None:
    code = "import core, huggingface_hub.constants as c; print(c.HF_HUB_DISABLE_TELEMETRY)"
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_TELEMETRY"}
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert process.stdout.strip() == "True", process.stderr


def test_the_version_is_one() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version} " in (ROOT / "CHANGELOG.md").read_text()
    assert __version__ == version
