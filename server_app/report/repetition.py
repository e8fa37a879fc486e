"""Repetition in a text: seq-rep-4 of Welleck et al. 2020 (arXiv:1908.04319), a sign of degenerate text.

Deviation: the 4-grams consist of words instead of tokens, so that texts of different models are comparable; in scripts
without spaces between words they consist of characters.
"""

from collections.abc import Sequence
from statistics import fmean

GRAM = 4
LONGEST_WORD = 20  # mean characters per word above which a text is taken to be in a script without spaces


def repeated(text: str) -> float | None:
    """Share of the text's 4-grams that occurred earlier in it; None if the text is too short for one."""
    units: Sequence[str] = text.split()
    if units and sum(map(len, units)) > LONGEST_WORD * len(units):
        units = "".join(units)
    grams = [tuple(units[i : i + GRAM]) for i in range(len(units) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None


def repetition(texts: Sequence[str]) -> tuple[float, int] | None:
    """Mean share over the texts that are long enough, and their number; None if no text is."""
    shares = [share for share in map(repeated, texts) if share is not None]
    return (fmean(shares), len(shares)) if shares else None
