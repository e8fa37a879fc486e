"""Starting a run: what is refused before a SuperLink is started."""

import os

import pytest
import torch

from cli.run.launch import launch, remove_unbegun
from cli.run.request import Request
from core.errors import ConfigError
from server_app.report.commands import FEDERATION
from server_app.run_folder import RunFolder
from tests.federation.conftest import SMALL, Place, environment


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/here"])
def test_a_place_that_cannot_hold_runs_is_refused(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"run.dir = '.*' cannot hold runs"):
        launch(Request({"run.dir": place}, FEDERATION), verbose=False)


@pytest.mark.slow
def test_a_run_that_cannot_start_is_refused_in_a_line_and_leaves_no_folder(tmp_path):
    """In a folder whose name has spaces and an umlaut, from which modules of our names are not imported."""
    folder = tmp_path / "ein Ordner mit ü"
    folder.mkdir()
    place = Place(folder, environment(folder))
    (place.path / "core.py").write_text("raise SystemExit('imported')")
    (place.path / "prompts.txt").write_bytes(b"\xff")
    done = place.accord("run", *SMALL, "eval.prompts=prompts.txt", check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("accord: eval.prompts = ")
    assert line.endswith("prompts.txt' is not UTF-8 text at byte 0")
    assert place.runs() == []
    assert not place.alive()


def test_only_new_folders_in_which_nothing_began_are_cleared_away(tmp_path):
    begun, empty, at_work, other = (tmp_path / name for name in ("begun", "empty", "at work", "other"))
    for folder in (begun, empty, at_work, other):
        folder.mkdir()
        (folder / ("notes.txt" if folder == other else "config.toml")).touch()
    (begun / "metrics.jsonl").write_text('{"round": 0}\n')
    holding = RunFolder(at_work).hold()
    remove_unbegun(tmp_path.iterdir(), fresh_s=0.0)
    os.close(holding)
    assert {p.name for p in tmp_path.iterdir()} == {"begun", "at work", "other"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model.device": "cuda"}, "model.device = 'cuda', but torch sees no CUDA device here"),
        ({"model.dtype": "float16"}, "model.dtype = 'float16' needs a GPU"),
    ],
)
def test_what_needs_a_gpu_is_refused_where_there_is_none(tmp_path, monkeypatch, keys, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        launch(Request(keys, FEDERATION), verbose=False)
