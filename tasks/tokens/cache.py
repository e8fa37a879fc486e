"""On-disk caches of a client: its tokenised rows and the log-probabilities of the reference.

A file is complete or absent (core/atomic.py) and has a digest; a damaged file is computed again.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from core import atomic, store
from tasks.base import Example, Row

log = logging.getLogger(__name__)

VERSION = 3  # of both file formats and of the arithmetic behind them
Encoded = tuple[list[Example], Counter[str]]  # examples, and the number of skipped rows by reason


class Cache:
    """The caches of one client under `folder`; with None they exist in memory only."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._refs: dict[str, dict[str, tuple[float, ...]]] = {}
        self._examples: dict[str, Encoded] = {}

    def examples(self, key: str, encode: Callable[[], Encoded]) -> Encoded:
        """Tokenised rows and the counts of skipped ones; `encode` is called if they are not in the cache.

        key: a content hash from rows_key().
        """
        if key not in self._examples:
            path = self._path("tokens", key)
            arrays = _load(path) if path else None
            if arrays is None:
                encoded = encode()
                self._examples[key] = encoded
                if path:
                    _save(path, _to_arrays(encoded))
            else:
                self._examples[key] = _from_arrays(arrays)
        return self._examples[key]

    def references(self, model: str) -> dict[str, tuple[float, ...]]:
        """The cached reference log-probabilities by example key. model: a key from reference_key()."""
        if model not in self._refs:
            path = self._path("reference", model)
            arrays = _load(path) if path else None
            self._refs[model] = {} if arrays is None else _references_from_arrays(arrays)
        return self._refs[model]

    def add_references(self, model: str, new: dict[str, tuple[float, ...]]) -> None:
        """Add reference log-probabilities, in memory and on disk."""
        references = self.references(model)
        references |= new
        path = self._path("reference", model)
        if path:
            _save(path, _references_to_arrays(references))

    def _path(self, kind: str, key: str) -> Path | None:
        return self.folder / f"{kind}-{key}.safetensors" if self.folder else None


def rows_key(rows: Sequence[Row], *facts: object) -> str:
    """A content hash of rows and of everything else that affects their tokens (`facts`)."""
    text = json.dumps([VERSION, list(facts), list(rows)], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def reference_key(fingerprint: str, numerics: str) -> str:
    """The cache key of a base model and the numerics it is computed with."""
    return hashlib.blake2b(f"{VERSION}|{fingerprint}|{numerics}".encode(), digest_size=16).hexdigest()


Arrays = dict[str, np.ndarray]


def _save(path: Path, arrays: Arrays) -> None:
    with store.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(path, save({"digest": _digest(arrays), **arrays}))


def _load(path: Path) -> Arrays | None:
    if not path.is_file():
        return None
    try:
        arrays = load(path.read_bytes())
        is_intact = np.array_equal(arrays.pop("digest"), _digest(arrays))
    except (SafetensorError, KeyError):
        is_intact, arrays = False, {}
    if not is_intact:
        log.warning("cache file=%s is damaged: made again", path.name)
    return arrays if is_intact else None


def _digest(arrays: Arrays) -> np.ndarray:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays.keys() - {"digest"}):
        digest.update(f"{name}{arrays[name].dtype}{arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def _to_arrays(encoded: Encoded) -> Arrays:
    examples, skipped = encoded
    parts = [[e.prompt, e.twin, e.lengths, *e.completions] for e in examples]
    return {
        "tokens": np.array([token for part in parts for ids in part for token in ids], np.int32),
        "lengths": np.array([len(ids) for part in parts for ids in part], np.int32),
        "widths": np.array([len(part) for part in parts], np.int32),
        "labels": np.array([-1 if e.label is None else int(e.label) for e in examples], np.int8),
        "confidence": np.array([e.confidence for e in examples], np.float64),
        "skipped": np.frombuffer(json.dumps(skipped).encode(), np.uint8),
    }


def _from_arrays(arrays: Arrays) -> Encoded:
    tokens, lengths = arrays["tokens"].tolist(), iter(arrays["lengths"].tolist())
    examples, start = [], 0
    facts = (arrays[name].tolist() for name in ("widths", "labels", "confidence"))
    for width, code, confidence in zip(*facts, strict=True):
        parts = []
        for _ in range(width):
            stop = start + next(lengths)
            parts.append(tuple(tokens[start:stop]))
            start = stop
        prompt, twin, answers, *completions = parts
        label = None if code < 0 else bool(code)  # -1 stands for no label
        examples.append(
            Example(prompt, tuple(completions), label, twin=twin, lengths=answers, confidence=confidence)
        )
    return examples, Counter(json.loads(arrays["skipped"].tobytes()))


def _references_to_arrays(references: dict[str, tuple[float, ...]]) -> Arrays:
    keys = "".join(references)
    return {
        "keys": np.frombuffer(bytes.fromhex(keys), np.uint8),
        "widths": np.array([len(values) for values in references.values()], np.int32),
        "values": np.array([value for values in references.values() for value in values], np.float32),
    }


def _references_from_arrays(arrays: Arrays) -> dict[str, tuple[float, ...]]:
    # keys are hex digests of one length, so that each row of the array is one key
    keys = arrays["keys"].reshape(len(arrays["widths"]), -1) if len(arrays["widths"]) else []
    values, references, start = arrays["values"].tolist(), {}, 0
    for key, width in zip(keys, arrays["widths"].tolist(), strict=True):
        references[key.tobytes().hex()] = tuple(values[start : start + width])
        start += width
    return references
