"""Tiny models with random weights and a character tokenizer; nothing is downloaded."""

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.gemma2 import Gemma2Config
from transformers.models.gpt2 import GPT2Config
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig

from core.tree import Tree
from tasks.model.adapter import get_adapter
from tasks.model.base import Base

SPECIAL = ("<unk>", "<s>", "</s>")
CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \n"
VOCABULARY = len(SPECIAL) + len(CHARACTERS)
DIMENSIONS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def tokenizer(
    *, bos: bool = True, eos: bool = True, chat: bool = False, merged: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per character and per string of `merged`; it adds BOS if it has one."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *CHARACTERS, *merged])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("|".join([*merged, r"[\s\S]"])), "isolated")
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    out = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>" if bos else None,
        eos_token="</s>" if eos else None,
    )
    if chat:
        out.chat_template = CHAT
    return out


def config(architecture: str = "llama") -> PreTrainedConfig:
    """Two layers of 32 channels with 4 heads, and 2 key-value heads where the architecture supports them."""
    if architecture == "llama":
        return LlamaConfig(**DIMENSIONS, tie_word_embeddings=False)
    if architecture == "mistral":  # a sliding window far below the lengths of the tests
        return MistralConfig(**DIMENSIONS, sliding_window=8)
    if architecture == "gemma2":  # soft-capped logits and attention: the padded path
        return Gemma2Config(**DIMENSIONS, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=0.5)
    assert architecture == "gpt2", architecture
    return GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=512,
        resid_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=2,
    )


def randomise(model: torch.nn.Module) -> None:
    """Draw all weights, larger than the usual initial values, so that differences show."""
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.15 if parameter.dim() > 1 else 0.5).add_(float(parameter.dim() == 1))


def folder(path: Path, architecture: str = "llama", *, seed: int = 0, bos: bool = True, eos: bool = True,
           chat: bool = False, shard_size: str = "1GB") -> Path:  # fmt: skip
    """A Hugging Face model folder at `path`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config(architecture))
        randomise(model)
    model.save_pretrained(path, max_shard_size=shard_size)
    tokenizer(bos=bos, eos=eos, chat=chat).save_pretrained(path)
    return path


def random_adapter(base: Base, seed: int = 0, size: float = 0.1) -> Tree:
    """A random adapter in which neither A nor B is zero."""
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(t.shape, generator=rng) * size for name, t in get_adapter(base).items()}
