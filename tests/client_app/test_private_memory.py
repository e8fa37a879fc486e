import pytest
import torch

from client_app.private_memory import Memory
from core.errors import ConfigError, MemoryMissing


def tree(value: float):
    return {"own": {"a": torch.full((2,), value)}}


def test_round_zero_is_empty(tmp_path):
    assert Memory(tmp_path, "run", 1).load(0) == {}


def test_the_version_that_is_named_is_read(tmp_path):
    memory = Memory(tmp_path, "run", 1)
    memory.save(1, tree(1.0), recalled=0)
    memory.save(2, tree(2.0), recalled=1)
    assert memory.load(1)["own"]["a"].tolist() == [1.0, 1.0]
    assert memory.load(2)["own"]["a"].tolist() == [2.0, 2.0]


def test_a_round_that_never_counted_is_written_again(tmp_path):
    """The reply of round 2 was lost: the server still names round 1, and round 2 is repeated."""
    memory = Memory(tmp_path, "run", 1)
    memory.save(1, tree(1.0), recalled=0)
    memory.save(2, tree(9.0), recalled=1)
    memory.save(2, tree(2.0), recalled=1)
    assert memory.load(1)["own"]["a"].tolist() == [1.0, 1.0]
    assert memory.load(2)["own"]["a"].tolist() == [2.0, 2.0]


def test_only_versions_older_than_the_recalled_one_are_pruned(tmp_path):
    memory = Memory(tmp_path, "run", 1)
    for rnd in (1, 2, 3):
        memory.save(rnd, tree(rnd), recalled=rnd - 1)
    with pytest.raises(MemoryMissing, match="client 1 has no memory of round 1"):
        memory.load(1)
    assert memory.load(2)["own"]["a"].tolist() == [2.0, 2.0]


def test_clients_and_runs_do_not_mix(tmp_path):
    Memory(tmp_path, "run", 1).save(1, tree(1.0), recalled=0)
    with pytest.raises(MemoryMissing):
        Memory(tmp_path, "run", 2).load(1)
    with pytest.raises(MemoryMissing):
        Memory(tmp_path, "other", 1).load(1)


@pytest.mark.parametrize("run", ["../evil", "", "a/b", ".hidden", "x" * 300])
def test_a_run_name_cannot_leave_the_folder(tmp_path, run):
    with pytest.raises(ConfigError):
        Memory(tmp_path, run, 1)
