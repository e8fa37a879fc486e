"""Models with random weights and rows of random tokens for the checks of `make gpu`."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.gemma2 import Gemma2Config
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.qwen2 import Qwen2Config

from core.sections import LoraConfig, ModelConfig, TrainConfig
from tasks.base import Example
from tasks.forward.setup import load_base
from tasks.kto import rotated
from tasks.model.adapter import get_adapter, initial_adapter, set_adapter
from tasks.model.base import Base

SEED = 20
PAD, EOS = 0, 1


@dataclass(frozen=True)
class Row:
    """A line of the table. passed: None for a figure without a threshold."""

    check: str
    figure: str
    passed: bool | None = None

    def line(self) -> str:
        verdict = {None: "", True: "ok", False: "FAILED"}[self.passed]
        return f"| {self.check} | {self.figure} | {verdict} |"


@dataclass(frozen=True)
class Size:
    """Sizes of a model and of its training rows."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tokens: tuple[int, int]  # of a prompt and of a response: minimum, maximum
    pairs: int = 8  # pairs per step
    steps: int = 4


TINY = Size(64, 128, 2, 4, 2, 512, (4, 12), pairs=2, steps=2)
SMALL = Size(256, 688, 4, 8, 4, 8_192, (32, 128))
HALF_BILLION = Size(896, 4864, 24, 14, 2, 151_936, (64, 256))  # Qwen2.5-0.5B's shape


def config_of(family: str, size: Size) -> PreTrainedConfig:
    """llama: tied head; qwen2: tied head, biases; mistral: a sliding window; gemma2: soft-capping, the padded path."""
    shared = {
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": size.inner,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "max_position_embeddings": 4096,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "tie_word_embeddings": True,
    }
    if family == "mistral":
        return MistralConfig(**shared, sliding_window=size.tokens[1])
    if family == "gemma2":
        return Gemma2Config(**shared, head_dim=size.hidden // size.heads)
    return {"llama": LlamaConfig, "qwen2": Qwen2Config}[family](**shared)


def build_model(folder: Path, family: str, size: Size, dtype: str = "float32") -> Path:
    """A model with random weights and a byte-level tokenizer, saved under `folder`; rows are token ids."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = AutoModelForCausalLM.from_config(config_of(family, size), dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    symbols = ["<pad>", "<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens = [*symbols, *(f"w{i}" for i in range(len(symbols), size.vocabulary))]
    inner = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<|endoftext|>"
    ).save_pretrained(folder)
    return folder


def rows_of(task: str, size: Size, count: int) -> list[Example]:
    """Prompts and responses of random token ids; the last token of a response is EOS."""
    draw = random.Random(SEED)

    def draw_ids() -> tuple[int, ...]:
        return tuple(draw.randrange(2, size.vocabulary) for _ in range(draw.randint(*size.tokens)))

    if task == "dpo":
        return [Example(draw_ids(), ((*draw_ids(), EOS), (*draw_ids(), EOS))) for _ in range(count)]
    rows = [Example(draw_ids(), ((*draw_ids(), EOS),), label=bool(i % 2)) for i in range(count)]
    return rotated(rows, 2 * size.pairs, max_length=4 * size.tokens[1])


def settings(task: str, size: Size) -> TrainConfig:
    rows = size.pairs if task == "dpo" else 2 * size.pairs
    return TrainConfig(
        learning_rate=1e-3, local_steps=size.steps, per_device_batch_size=rows, max_length=4 * size.tokens[1]
    )


def loaded(folder: Path, device: str, dtype: str) -> Base:
    base = load_base(ModelConfig(name=str(folder), device=device, dtype=dtype), LoraConfig())  # type: ignore[arg-type]
    set_adapter(base, initial_adapter(base, SEED))
    return base


def moved(base: Base, size: float = 0.02) -> None:
    """Give the adapter random weights, so that policy and reference differ."""
    rng = torch.Generator().manual_seed(SEED)
    set_adapter(base, {n: size * torch.randn(t.shape, generator=rng) for n, t in get_adapter(base).items()})
