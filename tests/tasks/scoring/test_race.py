"""Racing adapters: what is dropped when, how it is placed, and what that saves where types are planted."""

import numpy as np
import pytest

from strategies.rounds.grouping import exact
from tasks.scoring.race import FIRST, Result, race

NAMES = ("c0", "c1", "c2")


def raced(table: np.ndarray, z: float, *, weights=None, names=NAMES) -> tuple[Result, dict[str, int]]:
    """The race over the rows of (rows, adapters), and how far each adapter came."""
    seen = dict.fromkeys(names, 0)

    def score(name: str, start: int, stop: int) -> list[float]:
        assert seen[name] == start < stop, "every row once, in order"
        seen[name] = stop
        return table[start:stop, names.index(name)].tolist()

    return race(names, np.ones(len(table)) if weights is None else weights, score, z=z), seen


def planted(seed: int, rows: int = 200) -> np.ndarray:
    """(12 clients, rows, 3 adapters): losses near 0.7, half of the noise common to all; client m's own is m % 3."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.3, (12, rows, 1)) + rng.normal(0, 0.3, (12, rows, 3))
    better = 0.2 * np.eye(3)[np.arange(12) % 3]
    return 0.7 + noise - better[:, None, :]


def test_without_a_z_every_row_counts_by_its_weight() -> None:
    table, weights = planted(0)[0], np.arange(1.0, 201.0)
    result, seen = raced(table, 0.0, weights=weights)
    assert list(result.losses.values()) == pytest.approx(np.average(table, axis=0, weights=weights).tolist())
    assert result.scored == 1.0
    assert seen == dict.fromkeys(NAMES, 200)


def test_a_dropped_adapter_is_placed_by_its_difference_on_the_rows_it_saw() -> None:
    """c1 is 1 behind from the first row; c0 and c2 never part, though all three are worse on later rows."""
    rng = np.random.default_rng(1)
    level = np.linspace(0, 5, 100) + rng.normal(0, 1, 100)
    near = rng.normal(0, 0.2, 100)
    table = np.stack([level + near, level + 1 + rng.normal(0, 0.1, 100), level + near[::-1]], 1)
    result, seen = raced(table, 3.0)
    assert seen == {"c0": 100, "c1": FIRST, "c2": 100}
    assert result.scored == pytest.approx((200 + FIRST) / 300)
    best = min(("c0", "c2"), key=lambda name: table[:, NAMES.index(name)].mean())
    gap = (table[:FIRST, 1] - table[:FIRST, NAMES.index(best)]).mean()
    assert result.losses["c1"] == pytest.approx(result.losses[best] + gap)
    assert result.losses["c1"] > table[:FIRST, 1].mean() + 1, "its own mean is of the easy rows"


@pytest.mark.parametrize(("heavy", "border"), [(1.0, 38.7), (2.0, 42.1)])
def test_the_standard_error_by_hand(heavy: float, border: float) -> None:
    """Sixteen gaps of 0.9 and 1.1: 1 / (0.1 / sqrt(15)) = 38.7. With weights 2 and 1: mean 0.9667, and
    sqrt(16 / 15 (8 (2 x 0.0667)^2 + 8 (0.1333)^2)) / 24 = 0.02295."""
    gaps = np.array([0.9, 1.1] * 9)
    table, weights = np.stack([np.zeros(18), gaps, gaps], 1), np.array([heavy, 1.0] * 9)
    for z, dropped in ((border - 0.1, True), (border + 0.1, False)):
        _, seen = raced(table, z, weights=weights)
        assert (seen["c1"] == FIRST == 16) == dropped


def test_equal_adapters_stay_and_a_diverged_one_goes() -> None:
    """At the common start every adapter has the base's losses; two adapters left or one, it ends the same way."""
    level = np.random.default_rng(2).normal(size=(64, 1))
    result, _ = raced(np.tile(level, 3), 3.0)
    assert result.scored == 1.0
    assert len(set(result.losses.values())) == 1
    table = np.tile(level, 3)
    table[3, 0], table[5, 2] = np.nan, np.inf
    result, seen = raced(table, 3.0)
    assert seen == {"c0": FIRST, "c1": FIRST, "c2": FIRST}
    assert np.isfinite(list(result.losses.values())).tolist() == [False, True, False]
    result, _ = raced(np.full((64, 3), np.nan), 3.0)
    assert not np.isfinite(list(result.losses.values())).any()


def test_of_two_adapters_the_race_ends_with_the_first_that_is_dropped() -> None:
    table = planted(3)[1][:, :2]
    result, seen = raced(table, 3.0, names=NAMES[:2])
    assert seen["c0"] == seen["c1"] < 200
    assert result.losses["c1"] < result.losses["c0"]


def test_few_rows_are_all_scored() -> None:
    table = planted(4)[0][: FIRST - 1] + np.array([0.0, 9.0, 9.0])
    assert raced(table, 3.0)[0].scored == 1.0


def test_where_types_are_planted_the_groups_are_those_of_all_rows_for_less() -> None:
    shares = []
    for seed in range(20):
        results = [raced(table, 3.0)[0] for table in planted(seed)]
        losses = np.array([list(r.losses.values()) for r in results])
        assert exact(losses) == exact(planted(seed).mean(axis=1)) == [m % 3 for m in range(12)]
        shares.append(np.mean([r.scored for r in results]))
    assert np.mean(shares) <= 0.6
