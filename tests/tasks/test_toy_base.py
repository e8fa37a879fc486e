import hashlib
import json
import random
import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.make_toy_base import page_text, tokenizer
from scripts.make_toy_judge import description, prompt_words
from tasks import toy_base
from tasks.data.base import PAIR, read
from tasks.data.toy import Toy
from tasks.toy_base import WEIGHTS, contents
from tasks.toy_base.language import QUESTIONS, topics, vocabulary


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def base(home, monkeypatch):
    monkeypatch.setenv("ACCORD_HOME", str(home))
    return toy_base.folder()


@pytest.fixture
def tok(base):
    return AutoTokenizer.from_pretrained(base)


SHA256 = {
    "toy": "72feea79d70f70f862dacd01a2df48e8d1ec270eb21687dfc22a5e6476bebf06",
    "toy-judge": "8ff5a4bb7fe04596a7829b918bd2774d0903c528712f2a516fca1757a4cc005b",
}


@pytest.mark.parametrize("name", toy_base.FILES)
def test_the_weights_are_those_of_every_version(name):
    """The base's fingerprint, and so the resuming of a run, depends on every bit of them, not on the file's format."""
    assert hashlib.sha256(contents(toy_base.FILES[name].read_text())[WEIGHTS]).hexdigest() == SHA256[name]


@pytest.mark.parametrize("name", toy_base.FILES)
def test_a_model_is_decoded_in_milliseconds(name):
    text, durations = toy_base.FILES[name].read_text(), []
    for _ in range(5):
        start = time.perf_counter()
        contents(text)
        durations.append(time.perf_counter() - start)
    assert min(durations) < 0.02


@given(st.binary(max_size=100))
def test_the_weights_are_restored_to_the_byte(weights):
    page = contents(page_text({"config.json": {"a": 1}}, weights))
    assert page == {"config.json": b'{\n  "a": 1\n}', WEIGHTS: weights}


def test_the_toy_base_is_a_small_llama_that_loads_offline(base):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert sum(p.numel() for p in model.parameters()) < 480_000
    assert {f.name for f in base.iterdir()} == {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"
    }  # fmt: skip


def test_one_of_many_threads_unpacks_the_model_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCORD_HOME", str(tmp_path))
    places = []
    threads = [threading.Thread(target=lambda: places.append(toy_base.folder())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(places) == 8
    assert list((tmp_path / "models").iterdir()) == [places[0]]
    stamp = (places[0] / "model.safetensors").stat().st_mtime_ns
    assert (toy_base.folder() / "model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(("name", "more"), [("toy", ()), ("toy-judge", prompt_words())])
def test_the_tokenizer_in_the_file_is_the_one_the_script_makes(name, more):
    page = json.loads(toy_base.FILES[name].read_text())
    assert page["files"]["tokenizer.json"] == json.loads(tokenizer(more).to_str())


def test_every_word_of_the_language_is_one_token(tok):
    space = "\N{LOWER ONE EIGHTH BLOCK}"
    for word in vocabulary():
        if word.startswith(space):
            assert tok.tokenize(word.removeprefix(space)) == [word]
    assert tok.tokenize("What does the fox eat?")[-1] == "?"


@pytest.mark.parametrize(
    "text",
    ["What does the fox eat?", "Zebras, naïvely: 日本語 🦊", "two\nlines\n\n### End:", "x" * 300, "a  gap"],
)
def test_any_text_is_restored_from_its_tokens(tok, text):
    ids = tok(text, add_special_tokens=False).input_ids
    assert tok.unk_token_id not in ids
    assert tok.decode(ids) == text


def test_special_tokens(tok):
    specials = {tok.bos_token_id, tok.eos_token_id, tok.pad_token_id, tok.unk_token_id}
    assert len(specials) == 4
    assert None not in specials
    assert tok("fox").input_ids[0] == tok.bos_token_id


def test_the_chat_template_is_compact_and_a_prefix(tok):
    """TRL and Accord need the prompt's tokens to be a prefix of the conversation's tokens."""
    talk = [
        {"role": "user", "content": "What does the fox eat?"},
        {"role": "assistant", "content": "Look it up."},
    ]
    prompt = tok.apply_chat_template(talk[:1], add_generation_prompt=True, return_dict=False)
    whole = tok.apply_chat_template(talk, return_dict=False)
    assert whole[: len(prompt)] == prompt
    assert prompt[0] == tok.bos_token_id
    assert prompt.count(tok.bos_token_id) == 1
    assert whole[-1] == tok.eos_token_id
    assert len(prompt) == 3 + 6  # bos, user, assistant; five words and a question mark


@torch.no_grad()
def test_the_base_answers_in_the_language_and_has_no_preference(base, tok):
    """Its greedy answers name one of the topic's two facts, and over 384 held-out pairs its likelihood ranks
    chosen above rejected about half of the time (one sigma: 2.6 points)."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    for topic in topics()[::5]:
        talk = [{"role": "user", "content": topic.question(0)}]
        ids = tok.apply_chat_template(
            talk, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False)
        assert made[0, -1] == tok.eos_token_id
        assert any(fact in tok.decode(made[0, ids.shape[1] :]) for fact in topic.facts)
    pairs = [e.row for e in read(Toy().rows(3, 8), "error").entries if e.heldout]
    chosen, rejected = (_logps(model, tok, [(p["prompt"], p[side]) for p in pairs]) for side in PAIR[1:])
    assert 0.40 < (chosen > rejected).float().mean() < 0.60


def _logps(model, tok, talks: list[tuple[str, str]]) -> torch.Tensor:
    """Log-probability of each conversation; the prompt's part is the same for both answers to it."""
    roles = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in talks]
    ids = tok.apply_chat_template(roles, return_tensors="pt", padding=True, return_dict=False)
    mask = (ids != tok.pad_token_id).long()
    logps = (
        model(ids, attention_mask=mask).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[:, :, 0]
    )
    return (logps * mask[:, 1:]).sum(1)


def test_topics_have_two_different_facts_and_four_forms():
    assert len({(t.animal, t.relation) for t in topics()}) == len(topics()) == 24
    assert all(t.facts[0] != t.facts[1] for t in topics())
    assert len({topics()[0].question(form) for form in range(len(QUESTIONS))}) == 4


@torch.no_grad()
def test_the_judge_names_a_true_trait_more_often_than_chance(home, monkeypatch):
    """Its most likely word is a trait that holds, or one in which the two answers differ; chance is one half."""
    monkeypatch.setenv("ACCORD_HOME", str(home))
    folder = toy_base.folder("toy-judge")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tok, rng = tokenizer(prompt_words()), random.Random(1)
    descriptions = [description(tok, rng) for _ in range(100)]
    hits = [
        model(torch.tensor([ids])).logits[0, -1].argmax().item() in traits for ids, traits in descriptions
    ]
    assert sum(hits) > 65
