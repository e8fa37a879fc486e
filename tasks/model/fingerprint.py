"""The fingerprint of a base model: what it computes, whatever it is loaded as."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tasks.pretrained.convert import home, stamp, weights_of
from tasks.pretrained.weights import read_config

VOLATILE = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "pad_token_id"}


def fingerprint(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """blake2b over the configuration, the stored weights in order of their names, and the tokenizer.

    The weights are the tensors of the files that are loaded, and of no others in the folder. The same for any sharding
    and for any dtype, quantization or device the model is loaded with.
    """
    digest = hashlib.blake2b(digest_size=32)
    config = read_config(folder)
    facts = {key: value for key, value in config.items() if key not in VOLATILE}
    digest.update(json.dumps(facts, sort_keys=True).encode())
    digest.update(_digest(weights_of(folder).files).encode())
    digest.update(tokenizer_digest(tokenizer).encode())
    return digest.hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """What decides how text becomes tokens: vocabulary, merges, special tokens, chat template."""
    rules = tokenizer.backend_tokenizer.to_str() if isinstance(tokenizer, PreTrainedTokenizerFast) else ""
    facts = [
        rules or sorted(tokenizer.get_vocab().items()),
        [tokenizer.bos_token_id, tokenizer.eos_token_id],
        tokenizer.chat_template,
    ]
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=32).hexdigest()


def _digest(files: Sequence[Path]) -> str:
    """The digest of the stored tensors; remembered by the state of their files, for large models."""
    key = stamp(files)
    note = home() / "fingerprints" / key
    if note.is_file() and len(known := note.read_text()) == 64:
        return known
    digest = hashlib.blake2b(digest_size=32)
    for name, tensor in _stored(files):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        part = note.with_name(f"{key}.{os.getpid()}.part")
        part.write_text(digest.hexdigest())
        part.rename(note)
    except OSError:
        pass  # a read-only home only costs the next process the reading
    return digest.hexdigest()


def _stored(files: Sequence[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    where: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as handle:
            where |= dict.fromkeys(handle.keys(), file)
    for name in sorted(where):
        with safe_open(where[name], framework="pt") as handle:
            yield name, handle.get_tensor(name)
