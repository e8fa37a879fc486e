"""The cases of benchmarks/local_training.py: a model with random weights, and the rows of each task for all sides."""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from core.plugins import build
from core.sections import TrainConfig
from tasks.base import Example, Task
from tasks.kto import rotated
from tasks.training import loop

ROWS = {"dpo": 8, "kto": 16, "sft": 16, "selector": 8}  # rows (pairs for dpo, selector) of one optimiser step
DIMENSIONS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size",
)  # fmt: skip
SHAPES = {
    "tiny": (128, 352, 4, 4, 4, 8_192),
    "15m": (288, 768, 6, 6, 6, 32_000),
    "135m": (576, 1536, 30, 9, 3, 49_152),
}
PAD, EOS = 0, 1
LETTERS = (2, 3)  # token ids of the selector's answers
CUE = tuple(range(4, 8))
LIMIT = 1024  # tokens of a prompt and its response: no row is cut
SEED = 20


@dataclass(frozen=True)
class Case:
    """The model, settings and rows of one task, the same for all sides."""

    name: str
    task: Task
    folder: Path  # folder of the model
    threads: int
    cfg: TrainConfig
    text: list[dict[str, Any]]  # Any: texts and labels; in the order of training
    examples: list[Example]  # the same rows, placed so that Accord's draw trains in this order
    trl: "Case | None" = None  # the rows for TRL's engine, if they must differ


def build_model(folder: Path, model: str, vocabulary: int) -> None:
    """A Llama with random weights and a tokenizer whose words are its token ids, saved under `folder`."""
    shape = dict(zip(DIMENSIONS, SHAPES[model], strict=True))
    vocabulary = shape["vocab_size"] = vocabulary or shape["vocab_size"]
    special = {"pad_token_id": PAD, "bos_token_id": None, "eos_token_id": EOS}
    config = LlamaConfig(**shape, **special, tie_word_embeddings=True)
    torch.manual_seed(SEED)
    LlamaForCausalLM(config).save_pretrained(folder)
    ids = {"<pad>": PAD, "<eos>": EOS, **{f"w{i}": i for i in range(2, vocabulary)}}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>").save_pretrained(
        folder
    )


def make_case(name: str, folder: Path, *, steps: int, threads: int) -> Case:
    """Prompts and responses of 64-256 words, uniformly, every row once; a response's last token is EOS."""
    vocabulary = LlamaConfig.from_pretrained(folder, trust_remote_code=False).vocab_size
    cfg = TrainConfig(
        learning_rate=1e-3, local_steps=steps, per_device_batch_size=ROWS[name], max_length=LIMIT
    )
    draw = random.Random(SEED)

    def draw_ids(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, vocabulary) for _ in range(draw.randint(least, most)))

    def responses(count: int) -> tuple[tuple[int, ...], ...]:
        return tuple((*draw_ids(63, 255), EOS) for _ in range(count))

    count = steps * ROWS[name]
    if name == "selector":
        pairs = [[draw_ids(64, 256) for _ in range(3)] for _ in range(count)]
        rows = [
            Example((*question, *a, *b, *CUE), tuple((x,) for x in LETTERS), twin=(*question, *b, *a, *CUE))
            for question, a, b in pairs
        ]
        answered = [
            Example(prompt, ((letter, EOS),))
            for e in rows
            for prompt, letter in zip((e.prompt, e.twin), LETTERS, strict=True)
        ]
        both = replace(cfg, per_device_batch_size=2 * ROWS[name])
        text = [as_text("sft", e) for e in answered]
        trl = Case("sft", build("tasks", "sft", {}), folder, threads, both, text, placed(answered, both))
        return Case(name, build("tasks", name, {}), folder, threads, cfg, text, placed(rows, cfg), trl)
    rows = [
        Example(draw_ids(64, 256), responses(2 if name == "dpo" else 1), name == "kto" and bool(i % 2))
        for i in range(count)
    ]
    if name == "kto":
        rows = rotated(rows, ROWS[name], max_length=LIMIT)  # TRL's pairing, on every side
    text = [as_text(name, e) for e in rows]
    return Case(name, build("tasks", name, {}), folder, threads, cfg, text, placed(rows, cfg))


def placed(rows: list[Example], cfg: TrainConfig) -> list[Example]:
    """Reorder rows so that the draw of batches gives their original order."""
    batches = loop.local_batches(len(rows), cfg, steps=cfg.local_steps, seed=SEED)
    order = [row for micro in batches for batch in micro for row in batch]
    return [rows[order.index(row)] for row in range(len(rows))]


def as_text(name: str, example: Example) -> dict[str, Any]:
    """The text from which TRL's tokenisation gives these tokens; TRL adds EOS itself."""
    prompt, *responses = (
        "".join(f" w{i}" for i in ids if i != EOS) for ids in (example.prompt, *example.completions)
    )
    if name == "dpo":
        return {"prompt": prompt, "chosen": responses[0], "rejected": responses[1]}
    return {"prompt": prompt, "completion": responses[0]} | (
        {"label": example.label} if name == "kto" else {}
    )
