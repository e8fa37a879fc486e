"""accord node: what it changes of flwr is there to be changed, and everything works without it."""

import os
import subprocess
import sys

import pytest

from cli.site.node import fork_for_messages
from tests.federation.conftest import BIN, ROOT, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def clientapp(tmp_path, monkeypatch):
    """Flower's command as `accord node` lets Flower find it, and the process that forks."""
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    forking = fork_for_messages(tmp_path)
    yield (
        lambda: subprocess.run(["flwr-clientapp", "--nonsense"], capture_output=True, text=True, check=False),
        forking,
    )
    forking.kill()
    forking.wait()


def test_a_process_is_forked_and_writes_where_it_was_asked_for(clientapp, tmp_path):
    ask, _ = clientapp
    wait_until((tmp_path / "fork.sock").exists)
    for _ in range(3):
        done = ask()
        assert "unrecognized arguments: --nonsense" in done.stderr or "required" in done.stderr
        assert done.returncode == 0, "the one that asked leaves at once; the command itself would say 2"


def test_without_the_process_that_forks_the_command_is_flowers(clientapp, tmp_path):
    ask, forking = clientapp
    wait_until((tmp_path / "fork.sock").exists)
    forking.kill()
    forking.wait()
    done = ask()
    assert done.returncode == 2
    assert "usage: flwr-clientapp" in done.stderr


def test_paths_may_hold_spaces(tmp_path, monkeypatch):
    """Of Python, and of the folder for temporary files; a first line of a script ends at a space."""
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    folder = tmp_path / "mit Leerzeichen"
    folder.mkdir()
    (folder / "python").symlink_to(os.path.realpath(sys.executable))
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    fork_for_messages(folder).kill()
    done = subprocess.run(["flwr-clientapp", "--nonsense"], capture_output=True, text=True, check=False)
    assert "usage: flwr-clientapp" in done.stderr


def test_who_asks_for_tasks_is_flowers_superexec(clientapp):
    done = subprocess.run(["flower-superexec", "--nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "flower-superexec: error" in done.stderr
    assert "is not as 1.39" not in done.stderr


def test_the_process_that_forks_ends_with_its_parent(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from cli.site.node import fork_for_messages\n"
        f"print(fork_for_messages(Path({str(tmp_path)!r})).pid, flush=True); sys.stdin.read(); os._exit(9)"
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
def test_a_supernode_is_gone_when_its_command_has_ended(ends, code):
    script = (
        "import sys, threading, time; from cli.site.node import leave\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        f"def run():\n    print('last', flush=False); {ends}\n"
        "leave(run)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == code
    assert done.stdout == "last\n"
    assert ("ZeroDivisionError" in done.stderr) == (code == 1)


def test_what_lives_as_long_as_a_site_loads_no_torch():
    ask = "import sys, cli.site.supervise; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", ask], cwd=ROOT).returncode == 0
