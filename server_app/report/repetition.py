"""How much a text repeats itself: seq-rep-4 of Welleck et al. 2020 (arXiv:1908.04319), a sign of degenerate text.

Deviation: the 4-grams are of words, not of tokens, so that texts of two models compare; where a text has no spaces
between words, of characters.
"""

from collections.abc import Sequence
from statistics import fmean

GRAM = 4
LONGEST_WORD = 20  # characters of a word on average; a text above is taken to be in a script without spaces


def repeated(text: str) -> float | None:
    """The share of the text's 4-grams that occurred in it before; None where it is too short for one."""
    units: Sequence[str] = text.split()
    if units and sum(map(len, units)) > LONGEST_WORD * len(units):
        units = "".join(units)
    grams = [tuple(units[i : i + GRAM]) for i in range(len(units) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None


def repetition(texts: Sequence[str]) -> tuple[float, int] | None:
    """The mean over the texts that are long enough, and how many those are; None where none is."""
    shares = [share for share in map(repeated, texts) if share is not None]
    return (fmean(shares), len(shares)) if shares else None
