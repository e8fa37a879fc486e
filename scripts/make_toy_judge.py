"""Make the embedded judge: `python -m scripts.make_toy_judge [--check]`.

The base of make.py, which also learns to describe: shown one answer or two by the prompts of `tasks/tokens/choice.py`,
it says at the place of the choice what holds of the answer, or of the first and not of the second. So it prefers none,
but what there is to prefer is there to be read. Its words include those of the prompts, which the base spells out.
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
BATCH = 32  # descriptions, in every step; answers in every third
RATED = 0.3  # share of them that show one answer, not two
LEARNING_RATE = 3e-3


def prompt_words() -> set[str]:
    """The words of the prompts that ask for a choice, and of the descriptions."""
    asked = re.findall(r"[A-Za-z]+", re.sub(r"\{\w+\}", "", COMPARE.query + RATE.query))
    traits = (word for sides in TRAITS.values() for word in sides)
    return {f"\N{LOWER ONE EIGHTH BLOCK}{word}" for word in (*asked, *traits)} | {"\n###", "\n\n###"}


def any_answer(rng: random.Random) -> Answer:
    fact, (polite, detailed, cautious) = rng.randrange(2), (rng.random() < 0.5 for _ in range(3))
    return Answer(fact, polite, detailed, cautious, rng.choice(ways(detailed=True)))


def description(tok: Tokenizer, rng: random.Random) -> tuple[list[int], list[int]]:
    """Token ids of a request to choose, and the tokens that may follow, equally likely: the traits and the fact that
    the answer has, or the first of two and not the second; the two letters where they do not differ."""

    def ids(text: str) -> list[int]:
        return tok.encode(text, add_special_tokens=False).ids

    topic, asked = rng.choice(topics()), rng.randrange(len(QUESTIONS))
    one, two = any_answer(rng), any_answer(rng)
    rated = rng.random() < RATED
    shown = {"query": topic.question(asked), "first": one.text(topic), "second": two.text(topic)}
    text = (RATE if rated else COMPARE).query.format(**shown)
    said = [
        sides[getattr(one, n)] for n, sides in TRAITS.items() if rated or getattr(one, n) != getattr(two, n)
    ]
    said += [topic.facts[one.fact]] if rated or one.fact != two.fact else []
    return [BOS, *ids(text)], [ids(word)[-1] for word in said or ("A", "B")]


def describing(model: LlamaForCausalLM, tok: Tokenizer, rng: random.Random) -> Tensor:
    """The loss of a batch of descriptions."""
    rows, wanted = zip(*(description(tok, rng) for _ in range(BATCH)), strict=True)
    last = torch.tensor([len(row) - 1 for row in rows])
    hidden = model.model(input_ids=padded(list(rows))).last_hidden_state[torch.arange(len(rows)), last]
    logp = model.lm_head(hidden).log_softmax(-1)
    return -torch.stack([row[list(tokens)].mean() for row, tokens in zip(logp, wanted, strict=True)]).mean()


def train(tok: Tokenizer) -> LlamaForCausalLM:
    """The trained judge, float32."""
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
