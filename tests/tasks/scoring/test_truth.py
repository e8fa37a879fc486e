"""Grades of answers: computed by hand, and of the embedded base."""

import pytest

from core.sections import LoraConfig, ModelConfig
from tasks.data.toy import Toy, World
from tasks.forward.setup import load_base
from tasks.model.adapter import initial_adapter, set_adapter
from tasks.scoring.generate import TextGenerator
from tasks.scoring.truth import grade_answers, grade_model
from tasks.tokens.encode import Encoder
from tasks.toy_base.language import Answer, topics

SEED = 42


def test_grades_computed_by_hand():
    """Four answers: right and polite; the other fact; no sentence of the language; a sentence about another topic.

    Client 0 prefers short answers: utilities 3 + 1.5 + 2, then 2, then 0.
    """
    toy, right = Toy(), World.draw(SEED).right
    fox, owl = topics()[:2]
    texts = [
        Answer(right[0], polite=True, detailed=False, cautious=True).text(fox),
        Answer(1 - right[1], polite=False, detailed=False, cautious=True).text(owl),
        "Look it up. Surely it eats eats berries.",
        Answer(right[1], polite=True, detailed=False, cautious=True).text(owl),
    ]
    probes = [fox.question(0), owl.question(0), fox.question(0), fox.question(0)]
    metrics = grade_answers(toy, probes, texts, seed=SEED, client=0)
    assert metrics == {"truth/valid": 0.5, "truth/right": 0.25, "truth/utility": (6.5 + 2.0) / 4}
    assert grade_answers(toy, probes, texts, seed=SEED, client=None).keys() == {"truth/valid", "truth/right"}


def test_a_text_answers_its_own_question_only():
    toy, fox = Toy(), topics()[0]
    text = Answer(0, polite=True, detailed=False, cautious=True).text(fox)
    assert toy.states_fact(SEED, fox.question(2), text) is (World.draw(SEED).right[0] == 0)
    assert toy.states_fact(SEED, topics()[1].question(0), text) is None
    assert toy.states_fact(SEED, "Who are you?", text) is None
    assert len(set(toy.probes())) == len(topics())


def test_the_embedded_base_gives_valid_answers_and_has_no_facts(tmp_path, monkeypatch):
    """14 of 24 facts are right by chance at this seed; the mean utility for types 0 and 1 is 3.50."""
    monkeypatch.setenv("ACCORD_HOME", str(tmp_path))
    base, toy = load_base(ModelConfig(), LoraConfig()), Toy()
    set_adapter(base, initial_adapter(base, SEED))  # the process may have trained it in another test
    encoder = Encoder(base.tokenizer, "auto", 256)
    both = [grade_model(base, encoder, toy, seed=SEED, client=client) for client in (0, 1)]
    assert all(m["truth/valid"] == 1.0 for m in both)
    assert all(m["truth/right"] == pytest.approx(14 / 24) for m in both)
    assert sum(m["truth/utility"] for m in both) / 2 == pytest.approx(3.5)
    prompts = [*toy.probes()[:2], toy.questions()[1], toy.probes()[3]]  # of two lengths
    generator = TextGenerator(base, encoder)
    assert generator.generate_together(prompts) == generator.generate(prompts)
