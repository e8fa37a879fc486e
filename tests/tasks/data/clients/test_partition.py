from collections import Counter

import pytest

from core.errors import DataError
from tasks.data.clients.partition import by_number, dirichlet, held_out, iid, natural
from tests.vectors import OPENFEDLLM


def test_iid_is_the_shuffle_and_shard_of_datasets():
    """The first three clients of OpenFedLLM's split of 100 rows over 20 clients with seed 2023."""
    shares = iid(100, 20, 2023)
    assert shares[:3] == [[29, 19, 34, 21, 16], [88, 94, 13, 77, 36], [69, 41, 6, 44, 14]]
    assert sorted(n for share in shares for n in share) == list(range(100))


def test_iid_equals_the_recorded_vector():
    vector = OPENFEDLLM["split_iid_N100_C20_seed2023"]
    assert iid(100, 20, 2023) == vector["outputs"]["clients"]


def test_iid_shares_differ_by_at_most_one_row():
    assert [len(share) for share in iid(11, 4, 1)] == [3, 3, 3, 2]


def test_natural_takes_the_largest_owners_in_the_order_of_their_names():
    """b has 3 rows, a-10 and a-2 have 2, a-1 has 1: three clients are a-2, a-10, b."""
    assert natural({"b": 3, "a-10": 2, "a-1": 1, "a-2": 2}, 3) == ["a-2", "a-10", "b"]


def test_natural_refuses_fewer_owners_than_clients():
    with pytest.raises(DataError, match="have 2 natural clients, but the federation has 3"):
        natural({"a": 2, "b": 1}, 3)


@pytest.mark.parametrize("alpha", [0.05, 1.0, 100.0])
def test_dirichlet_assigns_every_row_once(alpha):
    labels = ["x"] * 40 + ["y"] * 17
    shares = dirichlet(labels, 5, alpha, 3)
    assert sorted(n for share in shares for n in share) == list(range(57))


def test_a_small_alpha_separates_labels_and_a_large_one_mixes_them():
    """The share of a client's commonest label, averaged over clients: near 1 for alpha -> 0, near 1/4 for
    alpha -> infinity with four equally frequent labels."""
    labels = [str(n % 4) for n in range(4000)]

    def purity(alpha: float) -> float:
        shares = [share for share in dirichlet(labels, 10, alpha, 0) if share]
        tops = [max(Counter(labels[n] for n in share).values()) / len(share) for share in shares]
        return sum(tops) / len(tops)

    assert purity(0.01) > 0.8
    assert purity(1e4) < 0.3


def test_the_same_dirichlet_seed_mixes_two_sets_of_rows_alike():
    """10 000 and 1000 rows of the same labels: shares differ by the rounding of each cut only, 1/1000 here."""
    many, few = (dirichlet(["x"] * n + ["y"] * n, 4, 0.5, 9) for n in (5000, 500))
    for a, b in zip(many, few, strict=True):
        assert len(a) / 10_000 == pytest.approx(len(b) / 1000, abs=3e-3)


def test_partitions_are_functions_of_their_seed():
    assert iid(50, 3, 1) == iid(50, 3, 1) != iid(50, 3, 2)
    labels = ["x", "y"] * 30
    assert dirichlet(labels, 3, 0.5, 1) == dirichlet(labels, 3, 0.5, 1) != dirichlet(labels, 3, 0.5, 2)


def test_numbers_in_names_count_as_numbers():
    assert sorted(["c10", "c9", "c1", "b"], key=by_number) == ["b", "c1", "c9", "c10"]


def test_held_out_keeps_equal_rows_on_one_side():
    keys = ["a", "b", "a", "c", "d", "d", "e", "f", "g", "h", *"ddddaa"]
    train, out = held_out(keys, 0.25, 5)
    assert sorted(train + out) == list(range(16))
    assert not {keys[n] for n in train} & {keys[n] for n in out}
    assert len({keys[n] for n in out}) == 2  # a quarter of eight different rows


@pytest.mark.parametrize(
    ("keys", "fraction", "sizes"),
    [([], 0.25, (0, 0)), (["a"], 0.25, (1, 0)), (["a", "b"], 0.25, (1, 1)), (["a", "b"], 0.9, (1, 1)),
     (["a", "b"], 0.0, (2, 0))],
)  # fmt: skip
def test_a_client_with_few_rows_still_trains(keys, fraction, sizes):
    assert tuple(len(part) for part in held_out(keys, fraction, 0)) == sizes
