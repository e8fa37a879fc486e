"""Split a client's rows into training and held-out rows by whole prompts, so that no prompt is on both sides."""

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from core.types import Json
from tasks.base import Row
from tasks.data.clients import partition

# What stays on one side of a split. source: the source's own split; none: nothing is held out.
Unit = Literal["source", "prompt", "row", "none"]
MAX_COMPARISON_ROWS = 200
ANSWERS = ("chosen", "rejected", "completion")


@dataclass(frozen=True)
class Split:
    """Row numbers to train on and to hold out, both in order."""

    train: list[int]
    heldout: list[int]
    unit: Unit


@dataclass(frozen=True)
class HeldOut:
    """How many rows a client holds out, and the share of them whose prompt is trained on; None without rows."""

    rows: int = 0
    unit: Unit = "none"
    shared: float | None = None  # share whose prompt the client itself trains on
    # share whose prompt any client trains on; None where only one client's rows are available
    anywhere: float | None = field(default=None, compare=False)

    def facts(self) -> Json:
        """The fields for the reply to a hello; shares that are None are left out."""
        optional = {"shared": self.shared, "anywhere": self.anywhere}
        shares = {name: round(share, 4) for name, share in optional.items() if share is not None}
        return {"rows": self.rows, "unit": self.unit, **shares}


def split_rows(rows: Sequence[Row], fraction: float, seed: int) -> Split:
    """Hold out the rows of some prompts, about `fraction` of all rows.

    A client with a single prompt is split by answers: rows with the same answers stay on one side. The order of
    prompts (or answers) depends only on the seed and the text, so that clients of one run hold out the same ones as
    far as their sizes allow. Each side has at least one row if two rows differ and fraction > 0.
    """
    keys = [prompt_key(row["prompt"]) for row in rows]
    unit: Unit = "prompt"
    if len(set(keys)) < 2:
        keys, unit = [answers_key(row) for row in rows], "row"
    out = choose(Counter(keys), fraction, seed)
    numbers = range(len(keys))
    return Split(
        [n for n in numbers if keys[n] not in out],
        [n for n in numbers if keys[n] in out],
        unit if out else "none",
    )


def choose(sizes: Mapping[str, int], fraction: float, seed: int) -> set[str]:
    """The keys whose rows come closest to `fraction` of all rows, in the seed's order; never all keys.

    sizes: the number of rows of each key. A key is skipped if it would bring the count no closer to the target; if
    every key is skipped, the smallest one is chosen.
    """
    if fraction == 0 or len(sizes) < 2:
        return set()
    target = max(1, round(fraction * sum(sizes.values())))
    order = sorted(sizes, key=lambda key: (_rank(key, seed), key))
    chosen: set[str] = set()
    count = 0
    for key in order:
        if abs(count + sizes[key] - target) < abs(count - target) and len(chosen) < len(sizes) - 1:
            chosen.add(key)
            count += sizes[key]
    return chosen or {min(order, key=lambda key: sizes[key])}


def prompt_key(prompt: Json) -> str:
    """A prompt in the form in which prompts are compared.

    Case, spacing and Unicode form are normalised, and a single user message is its text.
    """
    if isinstance(prompt, list) and len(prompt) == 1 and prompt[0].get("role") == "user":
        prompt = prompt[0]["content"]
    return (
        _normalise(prompt)
        if isinstance(prompt, str)
        else json.dumps(_normalise_strings(prompt), sort_keys=True)
    )


def answers_key(row: Row) -> str:
    """The answers of a row in the form in which they are compared, independent of which one is preferred."""
    return json.dumps(sorted(prompt_key(row[column]) for column in ANSWERS if column in row))


def share_in(heldout: Sequence[Row], prompts: Collection[str]) -> float | None:
    """The share of held-out rows whose prompt is one of `prompts` (keys); None without rows."""
    return sum(prompt_key(row["prompt"]) in prompts for row in heldout) / len(heldout) if heldout else None


def _normalise_strings(value: Json) -> Json:
    if isinstance(value, str):
        return _normalise(value)
    if isinstance(value, list):
        return [_normalise_strings(item) for item in value]
    return (
        {key: _normalise_strings(item) for key, item in value.items()} if isinstance(value, dict) else value
    )


def _normalise(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _rank(key: str, seed: int) -> bytes:
    """The sort key that puts keys in the order of a seed."""
    return hashlib.blake2b(
        key.encode("utf-8", "surrogatepass"), digest_size=16, key=seed.to_bytes(8, "big")
    ).digest()


def set_aside(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split training rows into those to train on and a share, at most MAX_COMPARISON_ROWS, to compare adapters on.

    All rows of a prompt are on one side. Where that is impossible (one prompt for all rows, or whole prompts would give
    more than twice the wanted number of comparison rows), all rows of an answer are on one side.
    """
    share = min(share, MAX_COMPARISON_ROWS / len(rows))
    most = 2 * max(2, share * len(rows))
    train, comparison = partition.held_out([prompt_key(row["prompt"]) for row in rows], share, seed)
    if not comparison or len(comparison) > most:
        split = split_rows(rows, share, seed)
        train, comparison = split.train, split.heldout
    if len(comparison) > most:
        train, comparison = partition.held_out([answers_key(row) for row in rows], share, seed)
    return [rows[n] for n in train], [rows[n] for n in comparison]
