"""Sampled answers equal those of transformers, depend on the seed only, and are the tokens after the prompt."""

import pytest
import torch

from core.sections import LoraConfig, ModelConfig
from core.seeds import seed_for
from tasks.forward.setup import load_base
from tasks.model.adapter import set_adapter
from tasks.model.base import Base
from tasks.scoring.generate import Sampling, TextGenerator, greedy, sampled
from tasks.tokens.encode import Encoder
from tests import tiny

HOW = Sampling(completions=3, temperature=0.9, top_p=0.95, new_tokens=12)


@pytest.fixture(scope="module", params=["llama", "mistral", "gpt2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The sliding window of mistral is shorter than prompt and answer."""
    folder = tiny.folder(tmp_path_factory.mktemp("generate") / "m", request.param)
    return load_base(ModelConfig(name=str(folder)), LoraConfig(r=4))


def ids(base: Base, text: str = "What is it that the fox eats?") -> tuple[int, ...]:
    return Encoder(base.tokenizer, "none", 100).prompt(text)


def test_sharing_the_prompts_cache_does_not_change_the_answers(base: Base) -> None:
    prompt = torch.tensor([list(ids(base))] * 3)
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(5, "tokens"))
        whole = base.causal.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=True, top_k=0, top_p=0.95,
            temperature=0.9, max_new_tokens=12, pad_token_id=base.tokenizer.pad_token_id,
        )  # fmt: skip
    want = base.tokenizer.batch_decode(whole[:, prompt.shape[1] :], skip_special_tokens=True)
    assert sampled(base, ids(base), HOW, seed=5) == [text.strip() for text in want]


def test_samples_depend_on_the_seed_only(base: Base) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = sampled(base, ids(base), HOW, seed=5)
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(2)
    assert sampled(base, ids(base), HOW, seed=5) == first
    assert sampled(base, ids(base), HOW, seed=6) != first
    assert len(set(first)) > 1


def test_a_sample_at_low_temperature_is_greedy(base: Base) -> None:
    cold = Sampling(3, 1e-6, 1.0, 12)
    assert sampled(base, ids(base), cold, seed=0) == [greedy(base, ids(base), 12)] * 3


def test_an_answer_is_the_tokens_after_the_prompt(base: Base) -> None:
    """Token by token from full passes, with a prompt that the answer repeats."""
    prompt = Encoder(base.tokenizer, "none", 200).prompt("abab" + greedy(base, ids(base), 12) * 2)
    grown = list(prompt)
    with torch.no_grad():
        for _ in range(12):
            grown.append(int(base.causal(input_ids=torch.tensor([grown])).logits[0, -1].argmax()))
            if grown[-1] == base.tokenizer.eos_token_id:
                break
    want = base.tokenizer.decode(grown[len(prompt) :], skip_special_tokens=True)
    assert greedy(base, prompt, 12) == want.strip()


def test_a_frozen_generator_samples_from_the_base(base: Base) -> None:
    encoder = Encoder(base.tokenizer, "none", 100)
    before = TextGenerator(base, encoder).sample("Who?", HOW, seed=1)
    set_adapter(base, tiny.random_adapter(base, size=0.5))
    assert TextGenerator(base, encoder, frozen=True).sample("Who?", HOW, seed=1) == before
    assert TextGenerator(base, encoder).sample("Who?", HOW, seed=1) != before
