"""The weights of two rewards: against a general optimiser, with few and many pairs, and cross-fitted."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from tasks.scoring.combine import RIDGE, Combination, cross_fitted_scores


def drawn(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Margins of a weak implicit and a strong explicit reward, on different scales."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, count, generator=rng, dtype=torch.float64)
    return 0.01 * (0.2 + noise[0]), 5.0 * (1.5 + noise[1])


def test_the_weights_minimise_the_penalised_loss() -> None:
    implicit, explicit = drawn(300)
    x = torch.stack([m / m.square().mean().sqrt() for m in (implicit, explicit)], 1).numpy()
    least = minimize(
        lambda w: np.logaddexp(0, -x @ w).sum() + RIDGE / 2 * ((w - 1) ** 2).sum(), [0.0, 0.0], tol=1e-12
    ).x
    combination = Combination.fit(implicit, explicit)
    assert combination.weight == pytest.approx(least[1] / least[0], rel=1e-4)
    scores = combination.score(implicit, explicit).numpy()
    np.testing.assert_allclose(scores, x @ least, rtol=1e-4, atol=1e-6)
    ranks = implicit + combination.factor * explicit
    assert torch.equal(ranks.sign(), combination.score(implicit, explicit).sign())


def test_weights_are_equal_with_few_pairs_and_fitted_with_many() -> None:
    """The relative weight is 1 up to a few per cent with 6 pairs, and far above 1 with 3000."""
    assert Combination.fit(*drawn(6)).weight == pytest.approx(1.0, abs=0.2)
    assert Combination.fit(*drawn(3000)).weight > 3
    assert Combination.fit(torch.zeros(0), torch.zeros(0)).score(torch.ones(2), torch.ones(2)).tolist() == [
        0,
        0,
    ]


def test_a_reward_of_zero_has_no_weight() -> None:
    implicit, _ = drawn(50)
    combination = Combination.fit(implicit, torch.zeros(50))
    assert combination.explicit == 0.0
    assert torch.equal(combination.score(implicit, torch.ones(50)).sign(), implicit.sign())


def test_the_score_of_a_pair_does_not_depend_on_its_own_margins() -> None:
    implicit, explicit = drawn(40)
    before = cross_fitted_scores(implicit, explicit)
    other = implicit.clone()
    other[6] = -1.0
    after = cross_fitted_scores(other, explicit)
    assert torch.equal(after[::2][torch.arange(20) != 3], before[::2][torch.arange(20) != 3])
    assert not torch.equal(after[1::2], before[1::2])
    assert cross_fitted_scores(implicit[:1], explicit[:1]).tolist() == [0.0], (
        "alone it cannot be judged: a tie"
    )
