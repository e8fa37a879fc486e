"""Starting a run: what is refused before a SuperLink is started."""

import pytest

from core.errors import ConfigError
from server_app.launch import launch
from server_app.words import FEDERATION, Request


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/here"])
def test_a_place_that_cannot_hold_runs_is_refused(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"run.dir = '.*' cannot hold runs"):
        launch(Request({"run.dir": place}, FEDERATION), verbose=False)
