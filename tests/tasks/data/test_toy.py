from collections import Counter
from dataclasses import replace

import pytest

from core.errors import ConfigError
from tasks.data.base import PAIR, Planted, read
from tasks.data.toy import Toy, World
from tasks.toy_base.language import DETAILS, POLITE, Answer, topics


def entries(toy: Toy, seed: int = 1, clients: int = 8):
    return read(toy.rows(seed, clients), "error").entries


def parsed(prompt: str, text: str) -> tuple[int, Answer]:
    """The topic's number and the answer's features, parsed from the text alone."""
    place = next(n for n, topic in enumerate(topics()) if f" {topic.animal} " in prompt)
    fact = next(n for n, words in enumerate(topics()[place].facts) if words in text)
    polite = text.startswith(POLITE)
    cautious = "Perhaps" in text or "Probably" in text
    return place, Answer(fact, polite, text.endswith(DETAILS), cautious)


def test_every_client_has_its_pairs_and_its_type():
    all_entries = entries(Toy())
    assert Counter((e.owner, e.heldout) for e in all_entries) == {
        (f"client-{client}", heldout): 48 for client in range(8) for heldout in (False, True)
    }
    assert all(tuple(e.row) == PAIR for e in all_entries)
    assert [Toy().truth(client) for client in range(8)] == [0, 1] * 4
    assert Counter(Toy(types=4).truth(client) for client in range(8)) == dict.fromkeys(range(4), 2)


@pytest.mark.parametrize("types", [1, 2, 3, 4])
def test_without_noise_the_chosen_answer_has_the_higher_utility(types):
    """Utility is recomputed from the words of the answers and the planted truth."""
    toy = Toy(types=types, label_noise=0.0)
    right = World.draw(1).right
    for entry in entries(toy):
        client = int(entry.owner.removeprefix("client-"))
        values = []
        for side in ("chosen", "rejected"):
            place, answer = parsed(entry.row["prompt"], entry.row[side])
            values.append(toy.utility(answer, client, right=right[place]))
        assert values[0] > values[1], entry.owner


def test_utility_by_hand():
    """Right fact 3, preferred style 2, polite 1.5; type 0 prefers brief answers and type 1 detailed ones."""
    answer = Answer(fact=1, polite=True, detailed=False, cautious=True)
    assert Toy().utility(answer, 0, right=1) == 6.5
    assert Toy().utility(answer, 1, right=1) == 4.5
    assert Toy().utility(replace(answer, fact=0, polite=False, detailed=True), 1, right=1) == 2.0


def test_the_utility_of_a_text_is_that_of_its_parsed_answer():
    """The utility of a client's pairs, parsed from their text; an unknown answer has utility 0."""
    toy = Toy(types=3, label_noise=0.0)
    assert isinstance(toy, Planted)
    assert len(set(toy.questions())) == len(toy.questions()) == 4 * len(topics())
    for entry in entries(toy)[:60]:
        client, prompt = int(entry.owner.removeprefix("client-")), entry.row["prompt"]
        place, answer = parsed(prompt, entry.row["chosen"])
        want = toy.utility(answer, client, right=World.draw(1).right[place])
        assert toy.utility_of(1, prompt, entry.row["chosen"], client) == want
        assert toy.utility_of(1, prompt, entry.row["rejected"], client) < want
        assert toy.utility_of(1, prompt, f"{entry.row['chosen']} And so on.", client) == 0
    assert toy.utility_of(1, "Who are you?", "Nobody.", 0) is None


def test_noise_flips_training_labels_only():
    """8 x 400 pairs at p = 0.25 flip 800 +- 25 (one sigma); four sigma allowed."""
    clean, noisy = (Toy(rows_per_client=400, label_noise=p) for p in (0.0, 0.25))
    right = World.draw(1).right
    flips: Counter[bool] = Counter()
    for entry in entries(noisy):
        client = int(entry.owner.removeprefix("client-"))
        sides = [parsed(entry.row["prompt"], entry.row[side]) for side in ("chosen", "rejected")]
        values = [clean.utility(answer, client, right=right[place]) for place, answer in sides]
        flips[entry.heldout] += values[0] < values[1]
    assert flips[True] == 0
    assert 700 < flips[False] < 900


def test_held_out_questions_are_never_asked_in_training():
    all_entries = entries(Toy())
    trained, held = (
        {e.row["prompt"] for e in all_entries if e.heldout == heldout} for heldout in (False, True)
    )
    assert len(held) > 20  # most of the 24 topics come up
    assert not trained & held


def test_the_longer_answer_wins_about_half_of_the_time():
    """Ties count half; over 1920 held-out pairs one sigma is 1.1 points."""
    score = total = 0.0
    for seed in range(5):
        for entry in entries(Toy(), seed):
            if entry.heldout:
                gap = len(entry.row["chosen"].split()) - len(entry.row["rejected"].split())
                score += 0.5 if gap == 0 else float(gap > 0)
                total += 1
    assert 0.46 < score / total < 0.54


def test_types_disagree_about_the_same_pair():
    brief = Answer(fact=0, polite=True, detailed=False, cautious=True)
    detailed = replace(brief, detailed=True)
    toy = Toy()
    assert toy.utility(brief, 0, right=0) > toy.utility(detailed, 0, right=0)
    assert toy.utility(brief, 1, right=0) < toy.utility(detailed, 1, right=0)


def test_a_large_type_weight_decides_where_the_feature_differs_which_is_at_the_configured_rate():
    """8 x 96 pairs at 0.6: 461 +- 14; four sigma allowed. In all of them the type's preferred length decides."""
    all_entries = entries(Toy(type_weight=6.0, type_differs=0.6, label_noise=0.0))
    differ = 0
    for entry in all_entries:
        first, second = (parsed(entry.row["prompt"], entry.row[side])[1].detailed for side in PAIR[1:])
        if first != second:
            differ += 1
            assert first == bool(int(entry.owner.removeprefix("client-")) % 2)
    assert 405 < differ < 517


def test_rows_depend_on_seed_and_number_of_clients():
    rows = [
        [e.row for e in entries(Toy(), seed, clients)] for seed, clients in ((1, 4), (1, 4), (2, 4), (1, 5))
    ]
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]
    assert rows[0] != rows[3][: len(rows[0])]
    assert World.draw(1).right != World.draw(2).right


def test_prompts_are_distinct_public_questions():
    prompts = Toy().prompts()
    assert len(prompts) == len(set(prompts)) == 6
    assert prompts[0] == "What does the fox eat?"


@pytest.mark.parametrize(
    "bad",
    [
        {"types": 0},
        {"types": 5},
        {"rows_per_client": 0},
        {"eval_rows_per_client": -1},
        {"type_weight": -1.0},
        {"type_differs": 1.5},
    ],
)
def test_options_out_of_range_are_refused(bad):
    with pytest.raises(ConfigError, match=r"data\."):
        Toy(**bad)
