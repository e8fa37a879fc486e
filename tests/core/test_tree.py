import math

import pytest
import torch

from core import tree
from core.errors import TreeMismatch

A = {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([[3.0]])}
B = {"x": torch.tensor([5.0, 0.0]), "y": torch.tensor([[1.0]])}


def test_norm_by_hand():
    assert tree.norm(A) == pytest.approx(14**0.5)


def test_add_and_sub_are_inverse():
    back = tree.sub(tree.add(A, B), B)
    assert all(back[n].equal(A[n]) for n in A)


@pytest.mark.parametrize("other", [{"x": A["x"]}, {"x": A["x"], "y": torch.zeros(2)}, {**A, "z": A["x"]}])
def test_other_names_or_shapes_are_refused(other):
    with pytest.raises(TreeMismatch):
        tree.add(A, other)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_norm_of_something_infinite_is_not_finite(bad):
    assert not math.isfinite(tree.norm({**A, "z": torch.tensor([0.0, bad])}))


def test_flat_is_a_view_where_it_can_be():
    whole = torch.arange(6.0)
    laid = {"x": whole[1:3], "y": whole[3:6].view(3, 1)}
    assert tree.flat(laid).data_ptr() == whole[1:].data_ptr()
    assert tree.flat(laid).tolist() == [1, 2, 3, 4, 5]
    for other in (
        {"x": whole[1:3], "y": whole[4:6]},
        {"y": whole[3:5], "x": whole[1:3]},
        {"x": whole.view(2, 3).T},
        {"x": whole[:2], "y": torch.ones(2)},
    ):
        assert tree.flat(other).tolist() == [n for t in other.values() for n in t.reshape(-1).tolist()]
    assert tree.flat({}).tolist() == []


def test_unflat_is_the_reverse():
    back = tree.unflat(tree.flat(A), {n: t.shape for n, t in A.items()})
    assert all(back[n].equal(A[n]) for n in A)


@pytest.mark.parametrize("shape", [[3], [-1, -2], [1.0, 2.0], ["2"]])
def test_numbers_that_do_not_fit_are_refused(shape):
    with pytest.raises(TreeMismatch):
        tree.unflat(torch.zeros(2), {"x": shape})
