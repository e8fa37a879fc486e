import json

import pytest
import torch

from core import store
from core.errors import CheckpointError
from tests.core.test_atomic import no_file_above

TREES = {"global": {"a.weight": torch.arange(4.0), "b": torch.eye(2)}, "empty": {}}


def test_what_was_saved_comes_back(tmp_path):
    store.save(tmp_path / "00003", TREES, {"round": 3, "recall": {"1": 2}})
    trees, facts = store.load(tmp_path / "00003")
    assert facts == {"round": 3, "recall": {"1": 2}}
    assert trees.keys() == TREES.keys()
    assert all(trees["global"][n].equal(t) for n, t in TREES["global"].items())


def test_the_same_values_are_the_same_bytes(tmp_path):
    store.save(tmp_path / "a", TREES, {"x": 1})
    store.save(tmp_path / "b", TREES, {"x": 1})
    for name in (store.TENSORS, store.FACTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_saving_again_replaces(tmp_path):
    store.save(tmp_path / "00001", TREES, {"try": 1})
    store.save(tmp_path / "00001", TREES, {"try": 2})
    assert store.load(tmp_path / "00001")[1] == {"try": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["00001"]


def test_a_part_left_by_a_crash_is_not_a_round_and_is_pruned(tmp_path):
    store.save(tmp_path / "00001", TREES, {})
    (tmp_path / ".00002.part-x").mkdir()
    (tmp_path / ".00002.part-x" / store.TENSORS).write_bytes(b"torn")
    assert store.rounds(tmp_path) == [1]
    store.prune(tmp_path, {1})
    assert [p.name for p in tmp_path.iterdir()] == ["00001"]


def test_a_save_that_fails_leaves_what_stood(tmp_path):
    store.save(tmp_path / "00001", TREES, {"good": True})
    with pytest.raises(TypeError):
        store.save(tmp_path / "00001", TREES, {"bad": object()})
    assert store.load(tmp_path / "00001")[1] == {"good": True}
    assert [p.name for p in tmp_path.iterdir()] == ["00001"]


def test_write_text_replaces(tmp_path):
    store.write_text(tmp_path / "m.json", json.dumps(1))
    store.write_text(tmp_path / "m.json", json.dumps(2))
    assert (tmp_path / "m.json").read_text() == "2"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("most", [0, 100])
def test_a_disk_that_refuses_is_one_line_and_leaves_what_stood(tmp_path, most):
    folder, file = tmp_path / "00001", tmp_path / "m.json"
    store.save(folder, TREES, {"try": 1})
    store.write_text(file, "1")
    with no_file_above(most):
        with pytest.raises(CheckpointError, match=r"cannot write \S+/00001: .*File too large"):
            store.save(folder, TREES, {"try": 2})
        with pytest.raises(CheckpointError, match=r"cannot write \S+/m.json: File too large"):
            store.write_text(file, "2" * 200)
        with pytest.raises(CheckpointError, match=r"cannot write \S+/m.json: File too large"):
            store.append(file, "2" * 200)
    assert store.load(folder)[1] == {"try": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00001", "m.json"]
