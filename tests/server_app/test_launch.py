"""Starting a run: what is refused before a SuperLink is started."""

import pytest
import torch

from core.errors import ConfigError
from server_app.launch import launch
from server_app.words import FEDERATION, Request


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/here"])
def test_a_place_that_cannot_hold_runs_is_refused(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"run.dir = '.*' cannot hold runs"):
        launch(Request({"run.dir": place}, FEDERATION), verbose=False)


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
