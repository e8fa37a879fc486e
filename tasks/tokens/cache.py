"""What a client never computes twice: its rows as tokens and the reference's log-probabilities, on its disk.

A file is whole or absent (written aside, then renamed) and carries a digest: a damaged one is made again.
"""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from core import store
from tasks.base import Example, Row

log = logging.getLogger(__name__)

VERSION = 3  # of both file formats and of the arithmetic behind them
Made = tuple[list[Example], Counter[str]]


class Cache:
    """The caches of one client under `folder`; None keeps them in memory, for as long as this object lives."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._refs: dict[str, dict[str, tuple[float, ...]]] = {}
        self._examples: dict[str, Made] = {}

    def examples(self, key: str, make: Callable[[], Made]) -> Made:
        """Tokenised rows and the counts of skipped ones, by a content hash from rows_key(); made once."""
        if key not in self._examples:
            path = self._path("tokens", key)
            stored = _load(path) if path else None
            if stored is None:
                made = make()
                self._examples[key] = made
                if path:
                    _save(path, _flatten(made))
            else:
                self._examples[key] = _unflatten(stored)
        return self._examples[key]

    def references(self, model: str) -> dict[str, tuple[float, ...]]:
        """Known reference log-probabilities by example key, under the base and numerics named `model`."""
        if model not in self._refs:
            path = self._path("reference", model)
            stored = _load(path) if path else None
            self._refs[model] = {} if stored is None else _to_references(stored)
        return self._refs[model]

    def add_references(self, model: str, added: dict[str, tuple[float, ...]]) -> None:
        """Remember more of them, on disk as well."""
        known = self.references(model)
        known |= added
        path = self._path("reference", model)
        if path:
            _save(path, _from_references(known))

    def _path(self, kind: str, key: str) -> Path | None:
        return self.folder / f"{kind}-{key}.safetensors" if self.folder else None


def rows_key(rows: Sequence[Row], *facts: object) -> str:
    """A content hash of rows and of everything that decides how they become tokens."""
    text = json.dumps([VERSION, list(facts), list(rows)], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def reference_key(fingerprint: str, numerics: str) -> str:
    return hashlib.blake2b(f"{VERSION}|{fingerprint}|{numerics}".encode(), digest_size=16).hexdigest()


Arrays = dict[str, np.ndarray]


def _save(path: Path, arrays: Arrays) -> None:
    with store.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        part.write_bytes(save({"digest": _digest(arrays), **arrays}))
        part.replace(path)


def _load(path: Path) -> Arrays | None:
    if not path.is_file():
        return None
    try:
        arrays = load(path.read_bytes())
        whole = np.array_equal(arrays.pop("digest"), _digest(arrays))
    except (SafetensorError, KeyError):
        whole, arrays = False, {}
    if not whole:
        log.warning("cache file=%s is damaged: made again", path.name)
    return arrays if whole else None


def _digest(arrays: Arrays) -> np.ndarray:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays.keys() - {"digest"}):
        digest.update(f"{name}{arrays[name].dtype}{arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def _flatten(made: Made) -> Arrays:
    examples, skipped = made
    parts = [[e.prompt, e.twin, e.lengths, *e.completions] for e in examples]
    return {
        "tokens": np.array([token for part in parts for ids in part for token in ids], np.int32),
        "lengths": np.array([len(ids) for part in parts for ids in part], np.int32),
        "widths": np.array([len(part) for part in parts], np.int32),
        "labels": np.array([-1 if e.label is None else int(e.label) for e in examples], np.int8),
        "confidence": np.array([e.confidence for e in examples], np.float64),
        "skipped": np.frombuffer(json.dumps(skipped).encode(), np.uint8),
    }


def _unflatten(arrays: Arrays) -> Made:
    tokens, lengths = arrays["tokens"].tolist(), iter(arrays["lengths"].tolist())
    examples, start = [], 0
    facts = (arrays[name].tolist() for name in ("widths", "labels", "confidence"))
    for width, label, confidence in zip(*facts, strict=True):
        parts = []
        for _ in range(width):
            stop = start + next(lengths)
            parts.append(tuple(tokens[start:stop]))
            start = stop
        prompt, twin, answers, *completions = parts
        known = None if label < 0 else bool(label)
        examples.append(
            Example(prompt, tuple(completions), known, twin=twin, lengths=answers, confidence=confidence)
        )
    return examples, Counter(json.loads(arrays["skipped"].tobytes()))


def _from_references(known: dict[str, tuple[float, ...]]) -> Arrays:
    keys = "".join(known)
    return {
        "keys": np.frombuffer(bytes.fromhex(keys), np.uint8),
        "widths": np.array([len(values) for values in known.values()], np.int32),
        "values": np.array([value for values in known.values() for value in values], np.float32),
    }


def _to_references(arrays: Arrays) -> dict[str, tuple[float, ...]]:
    keys = arrays["keys"].reshape(len(arrays["widths"]), -1) if len(arrays["widths"]) else []
    values, out, start = arrays["values"].tolist(), {}, 0
    for key, width in zip(keys, arrays["widths"].tolist(), strict=True):
        out[key.tobytes().hex()] = tuple(values[start : start + width])
        start += width
    return out
