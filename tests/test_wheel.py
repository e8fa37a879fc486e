"""The wheel, installed where nothing else of the project is: one package, and a command that works from any folder."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.federation.conftest import environment
from tests.paths import ROOT

pytestmark = pytest.mark.slow
SMALL = [
    "run.num-server-rounds=2",
    "train.local-steps=1",
    "data.rows-per-client=8",
    "data.eval-rows-per-client=4",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns(
        ".venv", ".git", "runs", "dist", "__pycache__", ".*_cache", ".hypothesis"
    )
    shutil.copytree(ROOT, source, ignore=ignored)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        str(source),
    ]
    subprocess.run([*command, "--wheel-dir", str(folder)], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds the wheel. The dependencies are those of this environment, by path."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, symlinks=True)
    (packages,) = place.glob("lib/python*/site-packages")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(place / "bin/python"),
        "install",
        "--quiet",
        "--no-deps",
    ]
    subprocess.run([*pip, "--no-index", str(wheel)], check=True)
    here = Path(sys.executable).parent
    (packages / "dependencies.pth").write_text(
        next(p for p in sys.path if p.endswith("site-packages")) + "\n"
    )
    for program in [*here.glob("fl*wer-*"), *here.glob("flwr*")]:
        copy = place / "bin" / program.name
        copy.write_text(program.read_text().replace(str(here), str(place / "bin")))
        copy.chmod(0o755)
    return place / "bin"


def test_the_wheel_holds_one_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"accord"}
    for folder in ("core", "cli", "cli/provision/templates", "tasks/data", "presets"):
        assert any(name.startswith(f"accord/_app/{folder}/") for name in names), folder
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name]


def test_importing_the_package_hides_no_module_of_the_user(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "core.py").write_text("MINE = True\n")
    code = "import accord, core, sys; print(core.MINE, accord.__version__, 'tasks' in sys.modules)"
    done = subprocess.run(
        [installed / "python", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[0] == "True"
    assert done.stdout.split()[2] == "False"


def test_the_embedded_model_is_there_from_any_folder(installed: Path, tmp_path: Path) -> None:
    """As the model card of a toy run loads its base."""
    (tmp_path / "tasks.py").write_text("raise SystemExit('the module of the user')\n")
    code = "import accord, os; print(sorted(os.listdir(accord.embedded_model('toy-judge'))))"
    result = subprocess.run(
        [installed / "python", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    assert "'model.safetensors'" in result.stdout


@pytest.mark.parametrize("start", [["accord"], ["python", "-m", "accord"]], ids=" ".join)
def test_the_command_lists_its_plugins(installed: Path, tmp_path: Path, start: list[str]) -> None:
    command = [installed / start[0], *start[1:], "list"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "fedbiscuit" in done.stdout


def test_a_run_of_two_rounds_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    env = {name: value for name, value in environment(tmp_path).items() if name != "PYTHONPATH"}
    env["PATH"] = os.defpath
    (tmp_path / "core.py").write_text("raise SystemExit('the module of the user')\n")
    command = [
        installed / "accord",
        "run",
        "fedbiscuit-toy.toml",
        "strategy.name=fedavg",
        "task.name=dpo",
        *SMALL,
    ]
    done = subprocess.run(
        [*command, "federation.num-supernodes=2"], cwd=tmp_path, capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert (run / "report.html").is_file()
