"""Atomic files and folders: whole or absent, by however many writers, and after any of them has died."""

import json
import multiprocessing
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from core import atomic
from tests.paths import ROOT

SIZE = 1 << 18  # bytes: more than one write of the kernel's


@contextmanager
def no_file_above(most: int) -> Iterator[None]:
    """Make writes beyond so many bytes fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_by_text_or_bytes(tmp_path):
    atomic.write(tmp_path / "a", "Zürich\n")
    assert (tmp_path / "a").read_bytes() == "Zürich\n".encode()
    atomic.write(tmp_path / "a", b"\0\r\n")
    assert (tmp_path / "a").read_bytes() == b"\0\r\n"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("mode", "umask", "expected"),
    [(None, 0o027, 0o640), (None, 0o002, 0o664), (0o644, 0o077, 0o644), (0o600, 0o000, 0o600)],
)
def test_the_permission_bits_are_the_umask_or_exactly_the_chosen_ones(tmp_path, mode, umask, expected):
    before = os.umask(umask)
    try:
        atomic.write(tmp_path / "a", "x", mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == expected


def test_a_private_file_is_private_from_its_first_byte(tmp_path, monkeypatch):
    modes = []

    def fsync(handle: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(handle).st_mode))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "fchmod", lambda handle, mode: None)
    atomic.write(tmp_path / "key", "secret", 0o600)
    assert modes[0] == 0o600


def flushes(monkeypatch) -> list[str]:
    """The names of what is flushed to disk from now on, in order."""
    flushed, fsync = [], os.fsync

    def record(handle: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name.split(".part-")[0])
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    return flushed


def test_a_file_is_on_disk_before_its_name_and_its_name_before_the_return(tmp_path, monkeypatch):
    flushed = flushes(monkeypatch)
    atomic.write(tmp_path / "a", "x")
    assert flushed == [".a", tmp_path.name]


def test_a_folder_is_on_disk_before_its_name_and_its_name_before_the_return(tmp_path, monkeypatch):
    flushed = flushes(monkeypatch)
    with atomic.folder(tmp_path / "f") as part:
        (part / "deep").mkdir()
        (part / "deep" / "x").write_text("1")
        (part / "y").write_text("2")
    assert flushed == ["deep", "x", "y", ".f", tmp_path.name]


@pytest.mark.parametrize("most", [0, 100])
def test_a_full_disk_names_the_file_and_leaves_the_previous_content(tmp_path, most):
    atomic.write(tmp_path / "a", "1")
    with no_file_above(most), pytest.raises(OSError, match="File too large") as refused:
        atomic.write(tmp_path / "a", "2" * 200)
    assert refused.value.filename == str(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "1"
    assert names(tmp_path) == ["a"]


def test_a_full_disk_names_the_folder_and_leaves_the_previous_one(tmp_path):
    fill(tmp_path / "f", "1")
    with no_file_above(100), pytest.raises(OSError, match="File too large") as refused:
        fill(tmp_path / "f", "2" * 200)
    assert refused.value.filename == str(tmp_path / "f")
    assert (tmp_path / "f" / "x").read_text() == "1"
    assert names(tmp_path) == ["f"]


def test_a_missing_place_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as refused:
        atomic.write(tmp_path / "nowhere" / "a", "x")
    assert refused.value.filename == str(tmp_path / "nowhere" / "a")
    with pytest.raises(FileNotFoundError) as refused, atomic.folder(tmp_path / "nowhere" / "f"):
        pass
    assert refused.value.filename == str(tmp_path / "nowhere" / "f")


KILLED = """
import os, signal, sys
from pathlib import Path
from core import atomic
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
{}
"""


@pytest.mark.parametrize(
    "code",
    [
        "atomic.write(Path(sys.argv[1], 'a'), 'new')",
        "with atomic.folder(Path(sys.argv[1], 'a')) as part: (part / 'x').write_text('new')",
    ],
)
def test_what_a_killed_writer_left_does_no_harm(tmp_path, code):
    """The next writer may have the same process number, as in a restarted container."""
    killed = subprocess.run([sys.executable, "-c", KILLED.format(code), str(tmp_path)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    (remains,) = names(tmp_path)
    assert remains.startswith(".a.part-")
    for number in (os.getpid(), 1):
        (tmp_path / f".a.part-{number}").write_text("torn")
        (tmp_path / f".f.part-{number}").mkdir()
    atomic.write(tmp_path / "a", "whole", 0o600)
    fill(tmp_path / "f", "whole")
    assert (tmp_path / "a").read_text() == (tmp_path / "f" / "x").read_text() == "whole"


def fill(path: Path, text: str, *, replace: bool = True) -> None:
    with atomic.folder(path, replace=replace) as part:
        (part / "x").write_text(text)
        (part / "y").write_text(text)


def write_often(path: Path, letter: str) -> None:
    for _ in range(8):
        atomic.write(path, letter * SIZE)


def fill_often(path: Path, letter: str, replace: bool) -> None:
    for _ in range(8):
        fill(path, letter * 100, replace=replace)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_writers_of_the_same_file_all_succeed_and_it_is_always_whole(tmp_path, kind):
    atomic.write(tmp_path / "a", "0" * SIZE)
    with workers(kind) as run:
        jobs = [run(write_often, tmp_path / "a", letter) for letter in "123"]
        while not all(job.done() for job in jobs):
            text = (tmp_path / "a").read_text()
            assert len(text) == SIZE
            assert len(set(text)) == 1
        for job in jobs:
            job.result()
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_writers_of_the_same_folder_all_succeed_and_it_is_one_of_theirs(tmp_path, kind, replace):
    with workers(kind) as run:
        for job in [run(fill_often, tmp_path / "f", letter, replace) for letter in "123"]:
            job.result()
    assert (tmp_path / "f" / "x").read_text() == (tmp_path / "f" / "y").read_text()
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("call", [0, 1, 2])
def test_another_writer_may_come_between_any_two_steps(tmp_path, monkeypatch, call):
    """The steps are: rename, which fails; move the previous folder away; rename."""
    fill(tmp_path / "f", "previous")
    rename, calls = Path.rename, []

    def rename_after_another(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == call + 1:
            monkeypatch.setattr(Path, "rename", rename)
            fill(tmp_path / "f", "another")
            monkeypatch.setattr(Path, "rename", rename_after_another)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_after_another)
    fill(tmp_path / "f", "mine")
    assert (tmp_path / "f" / "x").read_text() == "mine"
    assert names(tmp_path) == ["f"]


def test_a_folder_that_another_writer_moved_away_is_no_error(tmp_path, monkeypatch):
    fill(tmp_path / "f", "previous")
    rename = Path.rename

    def rename_after_another(self: Path, target: Path) -> Path:
        if ".old" in target.name and self.exists():
            monkeypatch.setattr(Path, "rename", rename)
            rename(self, tmp_path / ".elsewhere")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_after_another)
    fill(tmp_path / "f", "mine")
    assert (tmp_path / "f" / "x").read_text() == "mine"


@contextmanager
def workers(kind: str) -> Iterator:
    if kind == "threads":
        with ThreadPoolExecutor(3) as pool:
            yield pool.submit
        return
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool.submit


def test_a_folder_that_exists_stays_where_it_is_not_to_be_replaced(tmp_path):
    fill(tmp_path / "f", "first", replace=False)
    fill(tmp_path / "f", "second", replace=False)
    assert (tmp_path / "f" / "x").read_text() == "first"
    fill(tmp_path / "f", "third")
    assert (tmp_path / "f" / "x").read_text() == "third"
    assert names(tmp_path) == ["f"]


def test_a_folder_is_private_unless_its_bits_are_chosen(tmp_path):
    fill(tmp_path / "f", "1")
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o700
    with atomic.folder(tmp_path / "g", mode=0o755):
        pass
    assert stat.S_IMODE((tmp_path / "g").stat().st_mode) == 0o755


def test_a_folder_whose_filling_fails_is_not_made(tmp_path):
    with pytest.raises(TypeError), atomic.folder(tmp_path / "f") as part:
        (part / "x").write_text(json.dumps(object()))
    assert names(tmp_path) == []
