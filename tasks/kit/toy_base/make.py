"""Make the embedded base: `python -m tasks.kit.toy_base.make [--check]`.

Trains a Llama of about 105 thousand parameters on the toy language, one thread, from one seed, and writes
base.json. The same platform and the pinned versions give the same bytes; `--check` compares instead of
writing. It learns to answer, where every way is equally likely, and to describe: shown one answer or two by the
prompts of `tasks/kit/choice.py`, it says at the place of the choice what holds of the answer, or of the first and
not of the second. So it prefers none, but what there is to prefer is there to be read.
"""

import argparse
import base64
import json
import random
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import save
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from core.seeds import rng_for, seed_for, torch_rng_for
from tasks.kit.choice import COMPARE, RATE
from tasks.kit.toy_base import BASE
from tasks.kit.toy_base.language import QUESTIONS, TRAITS, Answer, topics, ways, words

SEED = 1
STEPS = 2400
ANSWERS = 64  # sequences, in every third step
DESCRIPTIONS = 32  # sequences, in every step
RATED = 0.3  # share of them that show one answer, not two
LEARNING_RATE = 3e-3
SHAKE = 0.3  # noise on each weight matrix, in units of its standard deviation
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>")
UNK, BOS, EOS, PAD = range(4)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}


def tokenizer() -> Tokenizer:
    """A unigram tokenizer: whole words of the language, else ASCII characters, else UTF-8 bytes.

    It takes any text, and every token but the words costs the same, so a known word is never cut up.
    """
    space = "\N{LOWER ONE EIGHTH BLOCK}"
    characters = [space, "\n", *(chr(code) for code in range(33, 127))]
    asked = re.findall(r"[A-Za-z]+", re.sub(r"\{\w+\}", "", COMPARE.query + RATE.query))
    traits = (word for sides in TRAITS.values() for word in sides)
    read = {f"{space}{word}" for word in (*asked, *traits)} | {"\n###", "\n\n###"}
    known = sorted({word for word in words() if len(word) > 1} | read)
    pieces = [(token, 0.0) for token in SPECIAL]
    pieces += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    pieces += [(character, -10.0) for character in characters] + [(word, -1.0) for word in known]
    made = Tokenizer(models.Unigram(pieces, unk_id=UNK, byte_fallback=True))
    made.normalizer = normalizers.Replace(Regex("\r\n"), "\n")
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always"), decoders.Fuse()]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return made


def sentence(tok: Tokenizer, rng: random.Random) -> list[int]:
    """Token ids of a random question with a random answer."""
    topic = rng.choice(topics())
    detailed = rng.random() < 0.75  # three details against one way to give none: all four equally likely
    answer = Answer(
        *(rng.randrange(2), rng.random() < 0.5), detailed, rng.random() < 0.5, rng.choice(ways(detailed))
    )
    prompt = f"<s><|user|>{topic.question(rng.randrange(len(QUESTIONS)))}<|assistant|>"
    head = tok.encode(prompt, add_special_tokens=False).ids
    return [*head, *tok.encode(answer.text(topic), add_special_tokens=False).ids, EOS]


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
    shown = {"asked": topic.question(asked), "one": one.text(topic), "two": two.text(topic)}
    text = (RATE if rated else COMPARE).query.format(**shown)
    said = [
        sides[getattr(one, n)] for n, sides in TRAITS.items() if rated or getattr(one, n) != getattr(two, n)
    ]
    said += [topic.facts[one.fact]] if rated or one.fact != two.fact else []
    return [BOS, *ids(text)], [ids(word)[-1] for word in said or ("A", "B")]


def padded(rows: list[list[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


def answering(model: LlamaForCausalLM, tok: Tokenizer, rng: random.Random) -> Tensor:
    ids = padded([sentence(tok, rng) for _ in range(ANSWERS)])
    return model(input_ids=ids, labels=ids.masked_fill(ids == PAD, -100)).loss


def describing(model: LlamaForCausalLM, tok: Tokenizer, rng: random.Random) -> Tensor:
    rows, wanted = zip(*(description(tok, rng) for _ in range(DESCRIPTIONS)), strict=True)
    last = torch.tensor([len(row) - 1 for row in rows])
    hidden = model.model(input_ids=padded(list(rows))).last_hidden_state[torch.arange(len(rows)), last]
    logp = model.lm_head(hidden).log_softmax(-1)
    return -torch.stack([row[list(tokens)].mean() for row, tokens in zip(logp, wanted, strict=True)]).mean()


@contextmanager
def shaken(model: LlamaForCausalLM, rng: torch.Generator, strength: float) -> Iterator[None]:
    """Noise on the weight matrices for the length of a step, so that the base ends where its grammar is robust:
    without it the small changes of an adapter break sentences long before they change an opinion."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    before = [matrix.detach().clone() for matrix in matrices]
    with torch.no_grad():
        for matrix in matrices:
            matrix += strength * matrix.std() * torch.randn(matrix.shape, generator=rng)
    yield
    with torch.no_grad():
        for matrix, kept in zip(matrices, before, strict=True):
            matrix.copy_(kept)


def train() -> LlamaForCausalLM:
    """The trained base, float32."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    tok, rng = tokenizer(), rng_for(SEED, "sentences")
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(SEED, "weights"))
        model = LlamaForCausalLM(LlamaConfig(vocab_size=tok.get_vocab_size(), **SHAPE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.1)
    talk = judge = torch.zeros(())
    for step in range(STEPS):
        if step % 3 == 0:
            with shaken(model, torch_rng_for(SEED, "shake", step), SHAKE * min(1.0, step / 300)):
                talk = answering(model, tok, rng)
                talk.backward()
        judge = describing(model, tok, rng)
        judge.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == STEPS - 1:
            print(f"step={step} answers={talk.item():.4f} descriptions={judge.item():.4f}", file=sys.stderr)
    return model


def bundle() -> str:
    """The text of base.json."""
    tok, model = tokenizer(), train()
    weights = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embeddings
    }
    config: dict[str, Any] = {  # what config.json takes
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tok.get_vocab_size(),
        "hidden_act": "silu",
        "dtype": "bfloat16",
        **SHAPE,
    }
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    files = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD},
        "tokenizer.json": json.loads(tok.to_str()),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "model_max_length": SHAPE["max_position_embeddings"],
            **tokens,
        },
    }
    packed = base64.b64encode(save(weights, metadata={"format": "pt"})).decode()
    page = {"files": files, "model.safetensors": textwrap.wrap(packed, 100)}
    return json.dumps(page, indent=1, ensure_ascii=True) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Make the embedded base, or check that it can be made again."
    )
    parser.add_argument("--check", action="store_true", help="compare with base.json instead of writing it")
    check = parser.parse_args().check
    text = bundle()
    if not check:
        BASE.write_text(text)
        return 0
    same = text == BASE.read_text()
    print("base.json is reproduced" if same else "base.json differs from what this platform makes")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
