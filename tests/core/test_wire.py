import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

import tests.loopback  # noqa: F401 - gives this process an identity, which Message() asks for
from core import wire
from core.errors import TreeMismatch
from core.types import Order, Update

TREE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([1.5]), "none": torch.zeros(0, 4)}


def test_an_order_comes_back_equal():
    order = Order(
        3,
        {"global": TREE, "control": {"a": torch.ones(2)}},
        compare=("global",),
        recall=7,
        round=2,
        options={"x": "y", "f": 0.1},
    )
    back = wire.decode_order(wire.encode_order(order))
    assert replace(back, trees={}) == replace(order, trees={})
    assert back.trees.keys() == order.trees.keys()
    for name, tree in order.trees.items():
        assert list(back.trees[name]) == list(tree)
        assert all(
            back.trees[name][k].equal(t) and back.trees[name][k].shape == t.shape for k, t in tree.items()
        )


def test_an_update_without_trees_comes_back_equal():
    update = Update(1, 48, "global", {}, {"loss": 0.25})
    assert wire.decode_update(wire.encode_update(update)) == update


def test_a_bfloat16_tree_travels_as_float32():
    back = wire.decode_update(
        wire.encode_update(Update(0, 1, "g", {"delta": {"a": torch.ones(2).bfloat16()}}, {}))
    )
    assert back.trees["delta"]["a"].dtype == torch.float32


def test_an_adapter_travels_as_one_array():
    record = wire.encode_order(Order(0, {"global": TREE}))
    assert [len(r) for r in record.array_records.values()] == [1]
    assert wire.size_of(record) < 4 * 7 + 600


def test_a_layout_that_does_not_fit_its_numbers_is_refused():
    record = wire.encode_order(Order(0, {"global": TREE}))
    record["tree.global"] = ArrayRecord({"flat": Array(torch.zeros(3).numpy())})
    with pytest.raises(TreeMismatch, match="3 numbers, the layout has 7"):
        wire.decode_order(record)


def test_a_decoded_tree_is_the_messages_own_memory_and_goes_with_it():
    """No copy, and no cycle that would keep 16 MB until the garbage collector comes."""
    gc.disable()
    try:
        record = wire.encode_update(Update(0, 1, "global", {"delta": TREE}, {}))
        update = wire.decode_update(record)
        assert wire.size_of(record) > 28
        data = np.frombuffer(record["tree.delta"]["flat"].data, dtype=np.uint8)
        start = data.__array_interface__["data"][0]
        assert start < next(iter(update.trees["delta"].values())).data_ptr() < start + len(data)
        gone = weakref.ref(record["tree.delta"])
        del record, update, data
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("array", [torch.zeros(7, dtype=torch.float64), torch.zeros(7, 1)])
def test_anything_but_a_flat_float32_array_is_refused(array):
    record = wire.encode_order(Order(0, {"global": TREE}))
    record["tree.global"] = ArrayRecord({"flat": Array(array.numpy())})
    with pytest.raises(TreeMismatch, match="expected a flat float32 array"):
        wire.decode_order(record)


def test_a_tree_that_many_orders_carry_is_encoded_once():
    encoded: wire.Seen = {}
    first, second = (wire.encode_order(Order(c, {"global": TREE}), encoded) for c in (0, 1))
    assert first["tree.global"] is second["tree.global"]
    assert wire.decode_order(second).client == 1
