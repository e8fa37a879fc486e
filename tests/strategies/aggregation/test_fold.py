import pytest
import torch

from core.errors import TreeMismatch
from core.types import Update
from strategies.aggregation.fold import BLOCK, Mean, Share


def update(client: int, tree: dict, adapter: str = "global", **more) -> Update:
    return Update(client, client + 1, adapter, {"delta": tree, **more}, {})


def test_the_mean_is_the_plain_sum_in_order_whatever_the_blocks_are():
    """To the last bit: more entries than a block holds, an odd number of clients, two tensors."""
    rng = torch.Generator().manual_seed(0)
    trees = [
        {"a": torch.randn(BLOCK + 7, generator=rng), "b": torch.randn(3, 5, generator=rng)} for _ in range(5)
    ]
    fold = Mean(lambda u, name: Share(u.examples, 0.5))
    for client, tree in enumerate(trees):
        fold.add(update(client, tree))
    got = fold.result()["global"]["delta"]
    for name in ("a", "b"):
        want = torch.zeros_like(trees[0][name])
        for client, tree in enumerate(trees):
            want.add_(tree[name], alpha=(client + 1) * 0.5)
        assert got[name].equal(want / 15)


def test_trees_and_adapters_are_kept_apart_and_weighed_apart():
    fold = Mean(lambda u, name: Share(1.0 if name == "control" else u.examples))
    for client, adapter, value in ((0, "c0", 1.0), (1, "c1", 2.0), (2, "c0", 5.0)):
        tree = {"w": torch.tensor([value])}
        fold.add(update(client, tree, adapter, control={"w": tree["w"] * 10}))
    got = fold.result()
    assert got["c0"]["delta"]["w"].item() == pytest.approx((1 * 1 + 3 * 5) / 4)
    assert got["c0"]["control"]["w"].item() == 30.0
    assert got["c1"]["delta"]["w"].item() == 2.0


def test_another_layout_is_refused():
    fold = Mean(lambda u, name: Share(1.0))
    fold.add(update(0, {"w": torch.zeros(2)}))
    with pytest.raises(TreeMismatch):
        fold.add(update(1, {"w": torch.zeros(3)}))


def test_nothing_that_was_given_is_changed():
    tree = {"w": torch.tensor([1.0, 2.0])}
    fold = Mean(lambda u, name: Share(1.0))
    fold.add(update(0, tree))
    fold.add(update(1, tree))
    fold.result()
    assert tree["w"].tolist() == [1.0, 2.0]
