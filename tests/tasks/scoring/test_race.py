"""Racing adapters: when they are dropped, which loss they get, and the rows saved where types are planted."""

import numpy as np
import pytest

from strategies.rounds.grouping import exact
from tasks.scoring.race import FIRST, Result, race

NAMES = ("c0", "c1", "c2")


def raced(table: np.ndarray, z: float, *, weights=None, names=NAMES) -> tuple[Result, dict[str, int]]:
    """Race over a table of losses (rows, adapters). Also returns the number of rows scored for each adapter."""
    scored_until = dict.fromkeys(names, 0)

    def score(name: str, start: int, stop: int) -> list[float]:
        assert scored_until[name] == start < stop, "every row once, in order"
        scored_until[name] = stop
        return table[start:stop, names.index(name)].tolist()

    return race(names, np.ones(len(table)) if weights is None else weights, score, z=z), scored_until


def planted(seed: int, rows: int = 200) -> np.ndarray:
    """Losses (12 clients, rows, 3 adapters) near 0.7, half of the noise common to all; client m prefers m % 3."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.3, (12, rows, 1)) + rng.normal(0, 0.3, (12, rows, 3))
    better = 0.2 * np.eye(3)[np.arange(12) % 3]
    return 0.7 + noise - better[:, None, :]


def test_without_z_losses_are_weighted_means_over_all_rows() -> None:
    table, weights = planted(0)[0], np.arange(1.0, 201.0)
    result, scored_until = raced(table, 0.0, weights=weights)
    assert list(result.losses.values()) == pytest.approx(np.average(table, axis=0, weights=weights).tolist())
    assert result.scored == 1.0
    assert scored_until == dict.fromkeys(NAMES, 200)


def test_a_dropped_adapters_loss_comes_from_its_difference_on_its_rows() -> None:
    """c1 is worse by 1 from the first row; c0 and c2 stay close, and all three are worse on later rows."""
    rng = np.random.default_rng(1)
    level = np.linspace(0, 5, 100) + rng.normal(0, 1, 100)
    near = rng.normal(0, 0.2, 100)
    table = np.stack([level + near, level + 1 + rng.normal(0, 0.1, 100), level + near[::-1]], 1)
    result, scored_until = raced(table, 3.0)
    assert scored_until == {"c0": 100, "c1": FIRST, "c2": 100}
    assert result.scored == pytest.approx((200 + FIRST) / 300)
    best = min(("c0", "c2"), key=lambda name: table[:, NAMES.index(name)].mean())
    gap = (table[:FIRST, 1] - table[:FIRST, NAMES.index(best)]).mean()
    assert result.losses["c1"] == pytest.approx(result.losses[best] + gap)
    assert result.losses["c1"] > table[:FIRST, 1].mean() + 1, "its mean is over the easy rows only"


@pytest.mark.parametrize(("heavy", "border"), [(1.0, 38.7), (2.0, 42.1)])
def test_the_standard_error_computed_by_hand(heavy: float, border: float) -> None:
    """Sixteen gaps of 0.9 and 1.1: 1 / (0.1 / sqrt(15)) = 38.7. With weights 2 and 1: mean 0.9667, and
    sqrt(16 / 15 (8 (2 x 0.0667)^2 + 8 (0.1333)^2)) / 24 = 0.02295."""
    gaps = np.array([0.9, 1.1] * 9)
    table, weights = np.stack([np.zeros(18), gaps, gaps], 1), np.array([heavy, 1.0] * 9)
    for z, dropped in ((border - 0.1, True), (border + 0.1, False)):
        _, scored_until = raced(table, z, weights=weights)
        assert (scored_until["c1"] == FIRST == 16) == dropped


def test_equal_adapters_stay_and_a_diverged_one_is_dropped() -> None:
    """Initially every adapter has the losses of the base; adapters with losses that are not finite are dropped."""
    level = np.random.default_rng(2).normal(size=(64, 1))
    result, _ = raced(np.tile(level, 3), 3.0)
    assert result.scored == 1.0
    assert len(set(result.losses.values())) == 1
    table = np.tile(level, 3)
    table[3, 0], table[5, 2] = np.nan, np.inf
    result, scored_until = raced(table, 3.0)
    assert scored_until == {"c0": FIRST, "c1": FIRST, "c2": FIRST}
    assert np.isfinite(list(result.losses.values())).tolist() == [False, True, False]
    result, _ = raced(np.full((64, 3), np.nan), 3.0)
    assert not np.isfinite(list(result.losses.values())).any()


def test_a_race_of_two_adapters_ends_when_one_is_dropped() -> None:
    table = planted(3)[1][:, :2]
    result, scored_until = raced(table, 3.0, names=NAMES[:2])
    assert scored_until["c0"] == scored_until["c1"] < 200
    assert result.losses["c1"] < result.losses["c0"]


def test_few_rows_are_all_scored() -> None:
    table = planted(4)[0][: FIRST - 1] + np.array([0.0, 9.0, 9.0])
    assert raced(table, 3.0)[0].scored == 1.0


def test_with_planted_types_a_race_finds_the_groups_with_fewer_rows() -> None:
    shares = []
    for seed in range(20):
        results = [raced(table, 3.0)[0] for table in planted(seed)]
        losses = np.array([list(r.losses.values()) for r in results])
        assert exact(losses) == exact(planted(seed).mean(axis=1)) == [m % 3 for m in range(12)]
        shares.append(np.mean([r.scored for r in results]))
    assert np.mean(shares) <= 0.6
