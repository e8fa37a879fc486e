"""Which rows of a client are held out: whole prompts, so that no prompt is both trained on and scored."""

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from core.types import Json
from tasks.base import Row

Unit = Literal[
    "source", "prompt", "row", "none"
]  # what stays together; source: its own split; none: nothing is held out
ANSWERS = ("chosen", "rejected", "completion")


@dataclass(frozen=True)
class Split:
    """Row numbers to train on and to hold out, both in order."""

    train: list[int]
    heldout: list[int]
    unit: Unit


@dataclass(frozen=True)
class HeldOut:
    """How a client's held-out rows relate to training rows; a share is None where there is no row to count."""

    rows: int = 0
    unit: Unit = "none"
    shared: float | None = None  # of these rows, those whose prompt the client trains on as well
    # those whose prompt any client trains on; None where only one client's rows are here
    anywhere: float | None = field(default=None, compare=False)

    def facts(self) -> Json:
        """For the hello: what is not known is absent."""
        shares = {"shared": self.shared, "anywhere": self.anywhere}
        known = {name: round(share, 4) for name, share in shares.items() if share is not None}
        return {"rows": self.rows, "unit": self.unit, **known}


def split_rows(rows: Sequence[Row], fraction: float, seed: int) -> Split:
    """Hold out the rows of some prompts, about `fraction` of all rows.

    A client that has one prompt only is split by answers: the same answers stay on one side. Prompts (or answers) come
    in an order that is a function of the seed and the text alone, so that clients of one run hold out the same ones as
    far as their sizes allow. At least one row is held out and one kept wherever two rows differ and fraction > 0.
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

    sizes: key -> its number of rows. A key that would overshoot by more than it closes the gap is passed over; where
    every key would, the smallest is chosen.
    """
    if fraction == 0 or len(sizes) < 2:
        return set()
    wanted = max(1, round(fraction * sum(sizes.values())))
    order = sorted(sizes, key=lambda key: (_place(key, seed), key))
    out: set[str] = set()
    count = 0
    for key in order:
        if abs(count + sizes[key] - wanted) < abs(count - wanted) and len(out) < len(sizes) - 1:
            out.add(key)
            count += sizes[key]
    return out or {min(order, key=lambda key: sizes[key])}


def prompt_key(prompt: Json) -> str:
    """A prompt as it is compared: case, spacing and Unicode form aside, and a lone user's message as its text."""
    if isinstance(prompt, list) and len(prompt) == 1 and prompt[0].get("role") == "user":
        prompt = prompt[0]["content"]
    return _canonical(prompt) if isinstance(prompt, str) else json.dumps(_folded(prompt), sort_keys=True)


def answers_key(row: Row) -> str:
    """The answers of a row as they are compared, whichever of them is preferred."""
    return json.dumps(sorted(prompt_key(row[column]) for column in ANSWERS if column in row))


def share_in(heldout: Sequence[Row], prompts: Collection[str]) -> float | None:
    """The share of held-out rows whose prompt is one of `prompts` (keys); None without rows."""
    return sum(prompt_key(row["prompt"]) in prompts for row in heldout) / len(heldout) if heldout else None


def _folded(value: Json) -> Json:
    if isinstance(value, str):
        return _canonical(value)
    if isinstance(value, list):
        return [_folded(item) for item in value]
    return {key: _folded(item) for key, item in value.items()} if isinstance(value, dict) else value


def _canonical(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _place(key: str, seed: int) -> bytes:
    return hashlib.blake2b(
        key.encode("utf-8", "surrogatepass"), digest_size=16, key=seed.to_bytes(8, "big")
    ).digest()
