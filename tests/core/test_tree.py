import pytest
import torch

from core import tree
from core.errors import TreeMismatch

A = {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([[3.0]])}
B = {"x": torch.tensor([5.0, 0.0]), "y": torch.tensor([[1.0]])}


def test_mean_by_hand():
    """(1*1 + 3*5)/4 = 4, (1*2 + 3*0)/4 = 0.5, (1*3 + 3*1)/4 = 1.5."""
    out = tree.mean([A, B], [1.0, 3.0])
    assert out["x"].tolist() == [4.0, 0.5]
    assert out["y"].tolist() == [[1.5]]


def test_mean_leaves_its_arguments_alone():
    before = {n: t.clone() for n, t in A.items()}
    tree.mean([A, B], [1.0, 1.0])
    assert all(before[n].equal(A[n]) for n in A)


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
def test_is_finite(bad):
    assert tree.is_finite(A)
    assert not tree.is_finite({**A, "z": torch.tensor([0.0, bad])})
