"""Make the embedded base model: `python -m scripts.make_toy_base [--check]`.

Trains a Llama of about 100 thousand parameters on the toy language, with one thread and a fixed seed, and writes
base.json. The same platform and package versions give the same model; `--check` compares instead of writing. All kinds
of answers are equally likely in the training text, so that the base has no preference.
"""

import argparse
import base64
import json
import random
import sys
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from core.seeds import rng_for, seed_for, torch_rng_for
from tasks.toy_base import FILES, WEIGHTS, contents
from tasks.toy_base.language import QUESTIONS, Answer, topics, vocabulary, ways

SEED = 1
STEPS = 1500
BATCH = 64  # sequences
LEARNING_RATE = 4e-3
SHAKE = 0.3  # noise on each weight matrix, in units of its standard deviation
LINE = 1000  # characters in a line of weights
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


def tokenizer(extra_words: Collection[str] = ()) -> Tokenizer:
    """A unigram tokenizer: whole words of the language and `extra_words`, else ASCII characters, else UTF-8 bytes.

    It encodes any text. Words have a higher score than characters, so that a word of the vocabulary is never split.
    """
    space = "\N{LOWER ONE EIGHTH BLOCK}"
    characters = [space, "\n", *(chr(code) for code in range(33, 127))]
    whole_words = sorted({word for word in vocabulary() if len(word) > 1}.union(extra_words))
    pieces = [(token, 0.0) for token in SPECIAL]
    pieces += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    pieces += [(character, -10.0) for character in characters] + [(word, -1.0) for word in whole_words]
    result = Tokenizer(models.Unigram(pieces, unk_id=UNK, byte_fallback=True))
    result.normalizer = normalizers.Replace(Regex("\r\n"), "\n")
    result.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    result.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always"), decoders.Fuse()]
    )
    result.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    result.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return result


def sentence(tok: Tokenizer, rng: random.Random) -> list[int]:
    """Token ids of a random question with a random answer."""
    topic = rng.choice(topics())
    detailed = rng.random() < 0.75  # three phrases for details and one for none: all four equally likely
    answer = Answer(
        *(rng.randrange(2), rng.random() < 0.5), detailed, rng.random() < 0.5, rng.choice(ways(detailed))
    )
    prompt = f"<s><|user|>{topic.question(rng.randrange(len(QUESTIONS)))}<|assistant|>"
    head = tok.encode(prompt, add_special_tokens=False).ids
    return [*head, *tok.encode(answer.text(topic), add_special_tokens=False).ids, EOS]


def padded(rows: Sequence[list[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


def fresh(tok: Tokenizer) -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(SEED, "weights"))
        return LlamaForCausalLM(LlamaConfig(vocab_size=tok.get_vocab_size(), **SHAPE))


@contextmanager
def shaken(model: LlamaForCausalLM, rng: torch.Generator, strength: float) -> Iterator[None]:
    """Add noise to the weight matrices during a step, which makes the trained grammar robust.

    Without it, small changes by an adapter break sentences long before they change a preference.
    """
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    before = [matrix.detach().clone() for matrix in matrices]
    with torch.no_grad():
        for matrix in matrices:
            matrix += strength * matrix.std() * torch.randn(matrix.shape, generator=rng)
    yield
    with torch.no_grad():
        for matrix, original in zip(matrices, before, strict=True):
            matrix.copy_(original)


def answering(model: LlamaForCausalLM, tok: Tokenizer, rng: random.Random, step: int) -> Tensor:
    """The loss of a batch of questions with answers; adds its gradients, computed at the shaken weights."""
    with shaken(model, torch_rng_for(SEED, "shake", step), SHAKE * min(1.0, step / 300)):
        ids = padded([sentence(tok, rng) for _ in range(BATCH)])
        loss = model(input_ids=ids, labels=ids.masked_fill(ids == PAD, -100)).loss
        loss.backward()
    return loss


def descend(
    model: LlamaForCausalLM, backward: Callable[[int], Tensor], steps: int, learning_rate: float
) -> LlamaForCausalLM:
    """Train by AdamW with a one-cycle learning rate; `backward` computes gradients of a step and returns its loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        loss = backward(step)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            print(f"step={step} loss={loss.item():.4f}", file=sys.stderr)
    return model


def train(tok: Tokenizer) -> LlamaForCausalLM:
    """Train the base model, float32."""
    model, rng = fresh(tok), rng_for(SEED, "sentences")
    return descend(model, lambda step: answering(model, tok, rng, step), STEPS, LEARNING_RATE)


def bundle(tok: Tokenizer, model: LlamaForCausalLM) -> str:
    """The text of base.json or judge.json."""
    weights = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embeddings
    }
    config: dict[str, Any] = {  # Any: values of config.json
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
    return page_text(files, save(weights, metadata={"format": "pt"}))


def page_text(files: Mapping[str, Any], weights: bytes) -> str:  # Any: contents of JSON files
    """The text of base.json or judge.json, as `tasks.toy_base.contents` reads it."""
    packed = base64.b64encode(zlib.compress(weights[0::2] + weights[1::2], 9)).decode()
    lines = [packed[start : start + LINE] for start in range(0, len(packed), LINE)]
    return json.dumps({"files": files, WEIGHTS: lines}, indent=1, ensure_ascii=True) + "\n"


def main(path: Path, tok: Tokenizer, train: Callable[[Tokenizer], LlamaForCausalLM]) -> int:
    parser = argparse.ArgumentParser(description=f"Make {path.name}, or check that it is reproducible.")
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    text = bundle(tok, train(tok))
    if not check:
        path.write_text(text)
        return 0
    same = contents(text) == contents(path.read_text())  # zlib's own bytes may differ between its versions
    print(f"{path.name} is reproduced" if same else f"{path.name} differs from the output of this platform")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(FILES["toy"], tokenizer(), train))
