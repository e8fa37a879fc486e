"""Sums of thin products against the dense matrices they stand for."""

import torch

from strategies.aggregation.low_rank import Stack, factorise


def thin(seed: int, out: int = 6, rank: int = 2, into: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(out, rank, generator=rng), torch.randn(rank, into, generator=rng)


def dense(pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return pair[0].double() @ pair[1].double()


def test_factors_by_hand():
    """diag(9, 0) of rank 2 becomes one column 3 and one row 3; the singular value 4 is the one to go."""
    nine = factorise(torch.tensor([[9.0, 0.0], [0.0, 0.0]]), torch.eye(2))
    assert nine.left.abs().tolist() == [[3.0], [0.0]]
    assert nine.right.abs().tolist() == [[3.0, 0.0]]
    cut = factorise(torch.diag(torch.tensor([9.0, 4.0])), torch.eye(2), max_rank=1)
    assert (cut.left @ cut.right).round(decimals=12).tolist() == [[9.0, 0.0], [0.0, 0.0]]
    assert (cut.lost, cut.whole) == (16.0, 97.0)


def test_a_product_of_zero_has_no_factors():
    none = factorise(torch.zeros(3, 2), torch.ones(2, 4))
    assert (none.left.shape, none.right.shape, none.whole) == ((3, 0), (0, 4), 0.0)


def test_more_factors_than_the_matrix_has_ranks():
    pair = thin(0, rank=9)
    whole = factorise(*pair)
    assert whole.left.shape == (6, 5)
    torch.testing.assert_close(whole.left @ whole.right, dense(pair))


def test_a_stack_is_the_weighted_sum_and_does_not_grow_with_its_clients():
    stack, want, most = Stack(), torch.zeros(6, 5, dtype=torch.float64), 0
    for client in range(20):
        stack.push(client - 3.0, *thin(client))
        want += (client - 3.0) * dense(thin(client))
        most = max(most, stack.rank)
    whole = stack.factors()
    torch.testing.assert_close(whole.left @ whole.right, want)
    assert most == 5
