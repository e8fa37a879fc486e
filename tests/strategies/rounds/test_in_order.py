import itertools

import pytest
import torch

from core.types import Update
from strategies.rounds.in_order import InOrder


def update(client: int, dtype=torch.float32) -> Update:
    tree = {"a": torch.full((2, 3), float(client), dtype=dtype), "b": torch.arange(2, dtype=dtype) + client}
    return Update(client, 1, "global", {"delta": tree, "own": {}}, {"loss": float(client)})


@pytest.mark.parametrize("arrival", list(itertools.permutations([2, 5, 7, 9])))
def test_every_order_of_arrival_is_handed_on_in_one_order(arrival, tmp_path):
    seen: list[Update] = []
    line = InOrder([2, 5, 7, 9], seen.append, tmp_path)
    for client in arrival:
        if client == 7:
            line.skip(client)
        else:
            line.put(update(client))
    assert [u.client for u in seen] == [2, 5, 9]
    for got in seen:
        want = update(got.client)
        assert got.metrics == want.metrics
        assert got.trees["own"] == {}
        assert all(got.trees["delta"][n].equal(t) for n, t in want.trees["delta"].items())
    assert not list(tmp_path.iterdir()), "a file with a name would outlive a crash"


def test_what_can_go_goes_at_once(tmp_path):
    seen: list[Update] = []
    line = InOrder([0, 1, 2], lambda u: seen.append(u), tmp_path)
    line.put(update(0))
    assert [u.client for u in seen] == [0]
    line.put(update(2))
    assert [u.client for u in seen] == [0]
    line.skip(1)
    assert [u.client for u in seen] == [0, 2]


def test_the_numbers_keep_their_type(tmp_path):
    seen: list[Update] = []
    line = InOrder([0, 1], seen.append, tmp_path)
    line.put(update(1, torch.float64))
    line.skip(0)
    assert seen[0].trees["delta"]["a"].dtype == torch.float64
