"""The fingerprint of a base model: a digest of what it computes, independent of how it is loaded."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from core import atomic
from tasks.pretrained.convert import home, stamp, weights_of
from tasks.pretrained.weights import read_config

VOLATILE = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "pad_token_id"}


def fingerprint(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """blake2b over the configuration, the stored weights in order of their names, and the tokenizer.

    Only weight files that are loaded count, not others in the folder. The fingerprint does not depend on sharding, nor
    on the dtype, quantization or device with which the model is loaded.
    """
    digest = hashlib.blake2b(digest_size=32)
    config = read_config(folder)
    facts = {key: value for key, value in config.items() if key not in VOLATILE}
    digest.update(json.dumps(facts, sort_keys=True).encode())
    digest.update(_digest(weights_of(folder).files).encode())
    digest.update(tokenizer_digest(tokenizer).encode())
    return digest.hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of all that affects tokenisation: vocabulary, merges, special tokens, chat template."""
    rules = tokenizer.backend_tokenizer.to_str() if isinstance(tokenizer, PreTrainedTokenizerFast) else ""
    facts = [
        rules or sorted(tokenizer.get_vocab().items()),
        [tokenizer.bos_token_id, tokenizer.eos_token_id],
        tokenizer.chat_template,
    ]
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=32).hexdigest()


def _digest(files: Sequence[Path]) -> str:
    """The digest of the stored tensors, cached on disk under the state of their files, since large models take time."""
    cached = home() / "fingerprints" / stamp(files)
    if cached.is_file() and len(text := cached.read_text()) == 64:
        return text
    digest = hashlib.blake2b(digest_size=32)
    for name, tensor in _stored(files):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    with suppress(OSError):  # with a read-only home, the next process computes the digest again
        cached.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(cached, digest.hexdigest())
    return digest.hexdigest()


def _stored(files: Sequence[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    file_of: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as handle:
            file_of |= dict.fromkeys(handle.keys(), file)
    for name in sorted(file_of):
        with safe_open(file_of[name], framework="pt") as handle:
            yield name, handle.get_tensor(name)
