from core.seeds import rng_for, seed_for


def test_a_seed_depends_on_every_argument():
    base = seed_for(1, "batches", 2, 3)
    assert base == seed_for(1, "batches", 2, 3)
    others = {
        seed_for(2, "batches", 2, 3),
        seed_for(1, "cohort", 2, 3),
        seed_for(1, "batches", 3, 3),
        seed_for(1, "batches", 2, 4),
    }
    assert len(others | {base}) == 5


def test_numbers_and_their_text_differ():
    assert seed_for(1, "a", 12) != seed_for(1, "a", "12")


def test_rng_is_reproducible():
    assert rng_for(7, "cohort", 1).sample(range(100), 5) == rng_for(7, "cohort", 1).sample(range(100), 5)
