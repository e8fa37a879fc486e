"""The weights of two rewards: against a general optimiser, at both ends, and without a say in one's own score."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from tasks.scoring.combine import RIDGE, Combination, crossed


def drawn(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weak implicit margin and a strong explicit one, of other sizes."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, count, generator=rng, dtype=torch.float64)
    return 0.01 * (0.2 + noise[0]), 5.0 * (1.5 + noise[1])


def test_the_weights_are_the_minimum_of_the_penalised_loss() -> None:
    implicit, explicit = drawn(300)
    x = torch.stack([m / m.square().mean().sqrt() for m in (implicit, explicit)], 1).numpy()
    least = minimize(
        lambda w: np.logaddexp(0, -x @ w).sum() + RIDGE / 2 * ((w - 1) ** 2).sum(), [0.0, 0.0], tol=1e-12
    ).x
    found = Combination.fit(implicit, explicit)
    assert found.weight == pytest.approx(least[1] / least[0], rel=1e-4)
    scores = found.score(implicit, explicit).numpy()
    np.testing.assert_allclose(scores, x @ least, rtol=1e-4, atol=1e-6)
    ranks = implicit + found.factor * explicit
    assert torch.equal(ranks.sign(), found.score(implicit, explicit).sign())


def test_few_pairs_leave_the_two_alike_and_many_do_not() -> None:
    """Each in its own spread: 1 with 6 pairs up to a few per cent, far above it with 3000."""
    assert Combination.fit(*drawn(6)).weight == pytest.approx(1.0, abs=0.2)
    assert Combination.fit(*drawn(3000)).weight > 3
    assert Combination.fit(torch.zeros(0), torch.zeros(0)).score(torch.ones(2), torch.ones(2)).tolist() == [
        0,
        0,
    ]


def test_a_silent_reward_counts_for_nothing() -> None:
    implicit, _ = drawn(50)
    found = Combination.fit(implicit, torch.zeros(50))
    assert found.explicit == 0.0
    assert torch.equal(found.score(implicit, torch.ones(50)).sign(), implicit.sign())


def test_no_pair_has_a_say_in_its_own_score() -> None:
    implicit, explicit = drawn(40)
    before = crossed(implicit, explicit)
    other = implicit.clone()
    other[6] = -1.0
    after = crossed(other, explicit)
    assert torch.equal(after[::2][torch.arange(20) != 3], before[::2][torch.arange(20) != 3])
    assert not torch.equal(after[1::2], before[1::2])
    assert crossed(implicit[:1], explicit[:1]).tolist() == [0.0], "alone it cannot be judged: a tie"
