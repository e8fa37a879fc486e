"""accord node: processes are forked for messages, and Flower's own commands work without the fork server."""

import os
import subprocess
import sys

import pytest

from cli.site.node import start_fork_server
from tests.federation.conftest import BIN, ROOT, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def clientapp(tmp_path, monkeypatch):
    """Flower's command as `accord node` puts it on PATH, and the fork server."""
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    fork_server = start_fork_server(tmp_path)
    yield (
        lambda: subprocess.run(["flwr-clientapp", "--nonsense"], capture_output=True, text=True, check=False),
        fork_server,
    )
    fork_server.kill()
    fork_server.wait()


def test_a_forked_process_writes_to_the_streams_of_the_process_that_asked(clientapp, tmp_path):
    ask, _ = clientapp
    wait_until((tmp_path / "fork.sock").exists)
    for _ in range(3):
        result = ask()
        assert "unrecognized arguments: --nonsense" in result.stderr or "required" in result.stderr
        assert result.returncode == 0, "the asking process ends at once; the command itself would exit with 2"


def test_without_the_fork_server_the_command_is_flowers(clientapp, tmp_path):
    ask, fork_server = clientapp
    wait_until((tmp_path / "fork.sock").exists)
    fork_server.kill()
    fork_server.wait()
    result = ask()
    assert result.returncode == 2
    assert "usage: flwr-clientapp" in result.stderr


def test_paths_may_hold_spaces(tmp_path, monkeypatch):
    """Paths of Python and of the temporary folder; the #! line of a script would end at a space."""
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    folder = tmp_path / "mit Leerzeichen"
    folder.mkdir()
    (folder / "python").symlink_to(os.path.realpath(sys.executable))
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    start_fork_server(folder).kill()
    result = subprocess.run(["flwr-clientapp", "--nonsense"], capture_output=True, text=True, check=False)
    assert "usage: flwr-clientapp" in result.stderr


def test_flower_superexec_polls_for_tasks(clientapp):
    result = subprocess.run(["flower-superexec", "--nonsense"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "flower-superexec: error" in result.stderr
    assert "1.39" not in result.stderr


def test_the_fork_server_ends_with_its_parent(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from cli.site.node import start_fork_server\n"
        f"print(start_fork_server(Path({str(tmp_path)!r})).pid, flush=True); sys.stdin.read(); os._exit(9)"
    )
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PATH": path},
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert parent.stdout
    pid = int(parent.stdout.readline())
    wait_until((tmp_path / "fork.sock").exists)
    parent.kill()
    parent.wait()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), 10)


@pytest.mark.parametrize(("ends", "code"), [("pass", 0), ("sys.exit(3)", 3), ("1 / 0", 1)])
def test_a_supernode_process_ends_with_its_command(ends, code):
    script = (
        "import sys, threading, time; from cli.site.node import exit_with\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        f"def run():\n    print('last', flush=False); {ends}\n"
        "exit_with(run)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert result.returncode == code
    assert result.stdout == "last\n"
    assert ("ZeroDivisionError" in result.stderr) == (code == 1)


def test_the_supervisor_does_not_load_torch():
    ask = "import sys, cli.site.supervise; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", ask], cwd=ROOT).returncode == 0
