"""KTO's pairings of a prompt with another row's completion: without fixed points, and seeded."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tasks.base import Example
from tasks.kto import KTO, deranged, rotated
from tests.vectors import OPENFEDLLM


def row(prompt: int, completion: int, label: bool = True) -> Example:
    return Example((1, prompt), ((completion, 2),), label)


def test_rotation_equals_trl() -> None:
    vector = OPENFEDLLM["kto_kl_pairing_trl116"]
    rows = [row(10 + i, 20 + i) for i in range(4)]
    joined = rotated(rows, vector["inputs"]["per_device_train_batch_size"], max_length=9)
    want = vector["outputs"]["kl_completion_index"]
    assert [e.mismatched for e in joined] == [rows[i].completions[0] for i in want]


def test_rotation_works_in_groups_and_never_pairs_a_row_with_itself() -> None:
    """Groups 0 1 2 | 3 4 5 6: a last group of one would be its own partner."""
    rows = [row(10 + i, 20 + i) for i in range(7)]
    joined = rotated(rows, 3, max_length=9)
    assert [e.mismatched[0] - 20 for e in joined] == [2, 0, 1, 6, 3, 4, 5]


@given(st.lists(st.integers(0, 4), min_size=2, max_size=30), st.integers(0, 9))
def test_a_derangement_has_no_fixed_point_and_prefers_other_prompts(prompts: list[int], seed: int) -> None:
    """Every completion is used once. Pairs of the same prompt remain only for the part of the largest group
    that exceeds half of the rows: each of the others can serve one of its rows."""
    rows = [row(prompt, 100 + i) for i, prompt in enumerate(prompts)]
    joined = deranged(rows, seed=seed, max_length=9)
    partners = [e.mismatched[0] - 100 for e in joined]
    assert sorted(partners) == list(range(len(rows)))
    assert all(partner != i for i, partner in enumerate(partners))
    largest = max(Counter(prompts).values())
    same_prompt = sum(prompts[i] == prompts[partner] for i, partner in enumerate(partners))
    assert same_prompt == max(0, 2 * largest - len(rows))


def test_a_derangement_is_seeded() -> None:
    rows = [row(i, 100 + i) for i in range(12)]
    assert deranged(rows, seed=3, max_length=9) == deranged(rows, seed=3, max_length=9)
    assert deranged(rows, seed=3, max_length=9) != deranged(rows, seed=4, max_length=9)


def test_a_mismatched_completion_is_cut_to_what_fits_after_the_prompt() -> None:
    rows = [Example((1, 5, 6, 7), ((8,),), True), Example((1,), ((20, 21, 22, 23),), False)]
    first, second = deranged(rows, seed=0, max_length=5)
    assert (first.mismatched, second.mismatched) == ((20,), (8,))
    assert deranged(rows[:1], seed=0, max_length=5)[0].mismatched == ()


def test_prepare_keeps_existing_mismatched_completions() -> None:
    rows = rotated([row(i, 100 + i) for i in range(4)], 4, max_length=9)
    assert KTO().prepare(rows, seed=0, max_length=9) == rows
