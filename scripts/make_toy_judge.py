"""Make the embedded judge: `python -m scripts.make_toy_judge [--check]`.

Like the base of make_toy_base.py, it is trained on the toy language, and also to describe answers: given one or two
answers in the prompts of `tasks/tokens/choice.py`, it predicts, in place of the choice, a trait of the answer, or one
that the first has and the second has not. So it has no preference, but the traits can be read from its hidden states.
Its vocabulary includes the words of the prompts, which the base encodes as characters.
"""

import random
import re
import sys

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

from core.seeds import rng_for
from scripts.make_toy_base import BOS, SEED, answering, descend, fresh, main, padded, tokenizer
from tasks.tokens.choice import COMPARE, RATE
from tasks.toy_base import FILES
from tasks.toy_base.language import QUESTIONS, TRAITS, Answer, topics, ways

STEPS = 2400
BATCH = 32  # descriptions in every step; every third step also has a batch of answers
RATED = 0.3  # share of descriptions of one answer, not of two
LEARNING_RATE = 3e-3


def prompt_words() -> set[str]:
    """The words of the prompts for a choice and of the descriptions."""
    prompt_text = re.findall(r"[A-Za-z]+", re.sub(r"\{\w+\}", "", COMPARE.query + RATE.query))
    traits = (word for sides in TRAITS.values() for word in sides)
    return {f"\N{LOWER ONE EIGHTH BLOCK}{word}" for word in (*prompt_text, *traits)} | {"\n###", "\n\n###"}


def any_answer(rng: random.Random) -> Answer:
    fact, (polite, detailed, cautious) = rng.randrange(2), (rng.random() < 0.5 for _ in range(3))
    return Answer(fact, polite, detailed, cautious, rng.choice(ways(detailed=True)))


def description(tok: Tokenizer, rng: random.Random) -> tuple[list[int], list[int]]:
    """Token ids of a prompt for a choice, and the tokens that may follow with equal probability.

    These are the traits and the fact of the answer, or those that the first of two answers has and the second has not;
    the two letters if the answers do not differ.
    """

    def ids(text: str) -> list[int]:
        return tok.encode(text, add_special_tokens=False).ids

    topic, form = rng.choice(topics()), rng.randrange(len(QUESTIONS))
    first, second = any_answer(rng), any_answer(rng)
    rated = rng.random() < RATED
    fields = {"query": topic.question(form), "first": first.text(topic), "second": second.text(topic)}
    text = (RATE if rated else COMPARE).query.format(**fields)
    features = [
        sides[getattr(first, n)]
        for n, sides in TRAITS.items()
        if rated or getattr(first, n) != getattr(second, n)
    ]
    features += [topic.facts[first.fact]] if rated or first.fact != second.fact else []
    return [BOS, *ids(text)], [ids(word)[-1] for word in features or ("A", "B")]


def describing(model: LlamaForCausalLM, tok: Tokenizer, rng: random.Random) -> Tensor:
    """The loss of a batch of descriptions."""
    rows, targets = zip(*(description(tok, rng) for _ in range(BATCH)), strict=True)
    last = torch.tensor([len(row) - 1 for row in rows])
    hidden = model.model(input_ids=padded(list(rows))).last_hidden_state[torch.arange(len(rows)), last]
    logp = model.lm_head(hidden).log_softmax(-1)
    return -torch.stack([row[list(tokens)].mean() for row, tokens in zip(logp, targets, strict=True)]).mean()


def train(tok: Tokenizer) -> LlamaForCausalLM:
    """Train the judge, float32."""
    model, rng = fresh(tok), rng_for(SEED, "sentences")

    def backward(step: int) -> Tensor:
        if step % 3 == 0:
            answering(model, tok, rng, step)
        loss = describing(model, tok, rng)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        return loss

    return descend(model, backward, STEPS, LEARNING_RATE)


if __name__ == "__main__":
    sys.exit(main(FILES["toy-judge"], tokenizer(prompt_words()), train))
