"""The conflict map: clusters of planted matrices, by hand, and what is drawn."""

import json

import numpy as np
import pytest

from cli.advice.conflict import Conflict, draw_conflict, find_clusters, read_conflict, split
from core import store
from core.config import parse
from core.errors import DataError
from server_app.report.stats import adjusted_rand
from tests.server_app.report.test_plots import words
from tests.sites import federate


def planted(types: list[int], inside: float, across: float) -> np.ndarray:
    same = np.equal.outer(types, types)
    return np.where(np.eye(len(types), dtype=bool), 1.0, np.where(same, inside, across))


def updates(types: list[int], pull: float, seed: int) -> np.ndarray:
    """Cosines of noisy updates (clients, 64) without their mean, each `pull` along its type's own direction."""
    rng = np.random.default_rng(seed)
    ways = rng.standard_normal((max(types) + 1, 64))
    rows = pull * ways[types] + rng.standard_normal((len(types), 64))
    rows -= rows.mean(0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def test_the_largest_step_by_hand():
    """Unit vectors at 0, 10, 90, 100, 225, 235 degrees: merges cost 0.17 three times, then 1.99 and 2.78. Without the
    third pair there are two clusters."""
    angles = np.radians([0, 90, 225, 10, 100, 235])
    cosines = np.cos(np.subtract.outer(angles, angles))
    assert find_clusters(cosines) == [0, 1, 2, 0, 1, 2]
    assert find_clusters(cosines[np.ix_([0, 1, 3, 4], [0, 1, 3, 4])]) == [0, 1, 0, 1]


def test_a_type_between_two_opposite_ones_is_a_third():
    """Cosines of e, -e and f without their mean; a silhouette would be highest at two."""
    ways = np.array([[1, 0], [-1, 0], [0, 1]])[[0, 1, 2] * 4] - [0, 1 / 3]
    rows = np.hstack([ways / 2, np.random.default_rng(1).standard_normal((12, 200)) / 20])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert find_clusters(rows @ rows.T) == [0, 1, 2] * 4


@pytest.mark.parametrize("types", [[0, 1] * 4, [0, 1, 2] * 4, [1, 0, 0, 0, 0, 1], [0, 1, 2, 3] * 3])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_planted_types_are_found_with_their_number(types, seed):
    clusters = find_clusters(updates(types, 1.5, seed))
    pairs = set(zip(types, clusters, strict=True))
    assert len(pairs) == len(set(types)) == len(set(clusters))


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_one_population_is_one_cluster(seed):
    assert find_clusters(updates([0] * 12, 1.5, seed)) == [0] * 12


def test_two_clients_are_never_clustered():
    assert find_clusters(planted([0, 1], 1, -1)) == [0, 0]


def test_clusters_are_numbered_by_size_then_first_client():
    assert split(planted([2, 0, 1, 0, 0, 2, 1], 0.8, -0.3), 3) == [1, 0, 2, 0, 0, 1, 2]


def conflict(apart: np.ndarray) -> Conflict:
    return Conflict(tuple(range(10, 10 + len(apart))), apart, (apart + 1) / 2, apart)


def test_the_map_is_in_the_order_of_its_clusters_and_names_its_scale():
    conflict_map = conflict(planted([0, 1, 0, 1], 0.8, -0.4))
    plot = draw_conflict(conflict_map, [0, 1, 0, 1], {10: 1, 11: 0, 12: 1, 13: 0})
    assert plot
    assert [w for w in words(plot.svg) if w.endswith(")")][:4] == ["10 (1)", "12 (1)", "11 (0)", "13 (0)"]
    assert {"agree", "conflict"} <= set(words(plot.svg))
    assert "full colour at 0.80" in plot.caption
    assert "2 clusters, framed" in plot.caption


def test_a_map_of_one_client_or_of_hundreds_is_not_drawn():
    assert draw_conflict(conflict(np.eye(1)), [0], {}) is None
    assert draw_conflict(conflict(np.eye(101)), [0] * 101, {}) is None


def test_the_map_is_read_from_the_last_checkpoint_and_its_absence_is_an_error(tmp_path):
    with pytest.raises(DataError, match="probe"):
        read_conflict(tmp_path)
    matrix = [[1.0, 0.5], [0.5, 1.0]]
    measured = {"clients": [3, 5], "cosine": matrix, "signs": matrix, "apart": [[1.0, -1.0], [-1.0, 1.0]]}
    for rnd, facts in ((1, {}), (2, {"conflict": json.loads(json.dumps(measured))})):
        store.save(store.round_folder(tmp_path / "checkpoints", rnd), {}, {"facts": facts})
    conflict_map = read_conflict(tmp_path)
    assert conflict_map.clients == (3, 5)
    assert conflict_map.apart.tolist() == measured["apart"]


@pytest.mark.slow
@pytest.mark.parametrize("types", [1, 2, 3])
def test_planted_types_are_found_in_the_updates_of_a_run(types, tmp_path):
    """Four rounds of twelve clients. The bar: an adjusted Rand index of at least 0.8."""
    world = {
        "data.types": types,
        "data.type-weight": 6.0,
        "data.type-differs": 0.6,
        "data.rows-per-client": 96,
        "task.beta": 0.1,
        "train.learning-rate": 2e-3,
    }
    less = {"data.eval-rows-per-client": 2, "eval.every": 0, "run.num-server-rounds": 4}
    config = parse(
        {"strategy.name": "probe", "run.seed": 2, "run.dir": str(tmp_path / "runs"), **world, **less}
    )
    folder, _ = federate(config, tmp_path, 4, clients=12)
    groups = find_clusters(read_conflict(folder.path).apart)
    if types == 1:
        assert groups == [0] * 12
    else:
        index = adjusted_rand([str(group) for group in groups], [client % types for client in range(12)])
        assert index is not None
        assert index >= 0.8
