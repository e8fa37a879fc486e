"""Who may import whom: docs/architecture.md, held by reading the source."""

import ast
from pathlib import Path

import pytest

from core.plugins import names
from tests.paths import ROOT

# The packages from the lowest level to the highest: a module imports from its own level and from lower ones.
# A `base` is the contract of the plugins beside it, which are everything else in their folder.
LEVELS = (
    "core",
    "evals.base",
    "evals",
    "strategies.rounds",
    "strategies.clients",
    "strategies.aggregation",
    "strategies.base",
    "strategies",
    "tasks.base",
    "tasks.toy_base",
    "tasks.pretrained",
    "tasks.data.reading",
    "tasks.data.base",
    "tasks.data.clients",
    "tasks.data",
    "tasks.tokens",
    "tasks.model",
    "tasks.forward",
    "tasks.scoring",
    "tasks.training",
    "tasks",
    "client_app",
    "server_app.report",
    "server_app.rlft",
    "server_app",
    "cli.machine",
    "cli.run",
    "cli.check",
    "cli.advice",
    "cli.provision",
    "cli.site.policy",
    "cli.site",
    "cli",
    "accord",
)
PLUGINS = ("strategies", "tasks", "tasks.data", "evals")
NO_PLUGINS = ("__init__", "base")  # files of these packages
OURS = {level.split(".")[0] for level in LEVELS} | {"benchmarks", "scripts", "tests"}
MAY = {
    "core": {"core"},
    "tasks": {"core", "tasks"},
    "strategies": {"core", "strategies"},
    "evals": {"core", "evals"},
    "client_app": {"core", "tasks", "strategies", "client_app"},
    "server_app": {"core", "tasks", "strategies", "evals", "server_app"},
    "cli": {"core", "tasks", "strategies", "evals", "client_app", "server_app", "cli"},
    "accord": {"accord", "cli"},
}
ONLY_IN = {
    "flwr": {
        "cli/site/node.py",
        "client_app/main.py",
        "core/flower_patches.py",
        "core/framing.py",
        "core/wire.py",
        "server_app/main.py",
        "strategies/base.py",
        "strategies/rounds/meeting.py",
        "strategies/rounds/session.py",
    },
    "peft": {
        "tasks/model/attach.py",
        "tasks/model/base.py",
        "tasks/model/quantized.py",
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


def modules_imported(path: Path) -> set[str]:
    """Of ours, by their full names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            names |= {
                full if is_module(full := f"{node.module}.{alias.name}") else node.module
                for alias in node.names
            }
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.split(".")[0] in OURS}
    return names


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


def level(module: str) -> int:
    """The level of the longest name that the module's begins with."""
    fitting = [name for name in LEVELS if f"{module}.".startswith(f"{name}.")]
    return LEVELS.index(max(fitting, key=len))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_from_no_higher_level(path):
    assert {name for name in modules_imported(path) if level(name) > level(module_of(path))} == set()


def test_no_shared_package_imports_a_plugin():
    """core/ and the packages inside tasks/, strategies/ and evals/ get plugins by name, from the configuration."""
    packages = [package.replace(".", "/") for package in PLUGINS]
    plugins = {
        module_of(p) for folder in packages for p in (ROOT / folder).glob("*.py") if p.stem not in NO_PLUGINS
    }
    shared = [p for p in FILES if p.relative_to(ROOT).parts[0] in ("core", "tasks", "strategies", "evals")]
    imported = {module_of(p): modules_imported(p) & plugins for p in shared if module_of(p) not in plugins}
    assert not {module: sorted(names) for module, names in imported.items() if names}
    assert plugins >= {"tasks.kto", "tasks.data.jsonl", "strategies.fedavg", "evals.preference"}


def test_core_names_no_plugin():
    """Lists of plugins in core/ would have to be changed with every new one. The model `toy` has a plugin's name."""
    plugins = {n for package in ("strategies", "tasks", "tasks.data", "evals") for n in names(package)} - {
        "toy"
    }
    for path in (ROOT / "core").glob("*.py"):
        texts = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
        assert not texts & plugins, path


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_framework_stays_at_its_door(library):
    assert {str(p.relative_to(ROOT)) for p in FILES if library in imports(p)} <= ONLY_IN[library]


def test_datasets_is_imported_under_tasks_data_only():
    """And in the TRL engine, whose trainers take nothing else."""
    users = {str(p.relative_to(ROOT)) for p in FILES if "datasets" in imports(p)}
    assert all(u.startswith("tasks/data/") or u == "tasks/training/trl_engine.py" for u in users), users


def test_no_ignore_line_can_drop_a_source_folder():
    """Flower builds its bundle by .gitignore: an unanchored `data/` would drop tasks/data/ without a word."""
    lines = [
        line for line in (ROOT / ".gitignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    names = {p.name for package in MAY for p in (ROOT / package).rglob("*") if p.is_dir()} - {"__pycache__"}
    assert not [line for line in lines if not line.startswith("/") and line.strip("/*") in names]
