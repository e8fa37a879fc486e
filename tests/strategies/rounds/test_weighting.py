from core.types import Client
from strategies.rounds.weighting import sample
from tests.strategies.simulated_rounds import vector


def ids(n: int, k: int, how: str = "uniform", seed: int = 1, rnd: int = 1, sizes=None) -> list[int]:
    everyone = [Client(i, sizes[i] if sizes else 1) for i in range(n)]
    return [c.id for c in sample(everyone, k / n, how, seed, rnd)]


def test_the_cohort_follows_from_seed_and_round():
    assert ids(20, 5) == ids(20, 5) == sorted(ids(20, 5))
    assert len({tuple(ids(20, 5, seed=s, rnd=r)) for s in (1, 2) for r in (1, 2)}) == 4
    assert len(ids(20, 5)) == 5


def test_all_is_everyone():
    assert ids(7, 2, "all") == list(range(7))


def test_weighted_asks_large_clients_more_often():
    """Two of four by sizes 1, 1, 1, 7: client 3 is left out of a draw with probability 3/10 * 2/9 = 1/15."""
    missed = sum(3 not in ids(4, 2, "weighted", rnd=r, sizes=[1, 1, 1, 7]) for r in range(1, 1501))
    assert 70 < missed < 130
    assert len({tuple(ids(4, 2, "weighted", seed=s, sizes=[1, 1, 1, 7])) for s in range(20)}) > 2


def test_weighted_never_asks_a_client_without_rows():
    assert all(ids(3, 3, "weighted", rnd=r, sizes=[0, 5, 5]) == [1, 2] for r in range(1, 9))


def test_the_references_schedule():
    """Independent of the run's seed, as there."""
    outputs = vector("client_sampling")["outputs"]
    for name, n, k in (
        ("N20_K2", 20, 2),
        ("N50_K5", 50, 5),
        ("N5_K2", 5, 2),
        ("N4_K4", 4, 4),
        ("N747_K10_first50", 747, 10),
    ):
        for r, want in enumerate(outputs[name]):
            assert ids(n, k, "openfedllm", seed=r * 3, rnd=r + 1) == want, (name, r)
