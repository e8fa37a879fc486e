"""Partition rows over simulated clients: pure functions from counts and labels to row numbers."""

from collections.abc import Mapping, Sequence

import numpy as np

from core.errors import DataError
from core.seeds import rng_for

Shares = list[list[int]]  # for each client, the numbers of its rows


def iid(rows: int, clients: int, seed: int) -> Shares:
    """Shuffle the rows and cut them into contiguous shares whose sizes differ by at most one, the larger first.

    The order is that of `numpy.random.default_rng(seed).permutation`, as in the shuffle() and shard() of `datasets`.
    """
    order = np.random.default_rng(seed).permutation(rows)
    return [share.tolist() for share in np.array_split(order, clients)]


def dirichlet(labels: Sequence[str], clients: int, alpha: float, seed: int) -> Shares:
    """Divide each label's rows over the clients in proportions drawn from Dirichlet(alpha); small alpha is more skewed.

    Hsu et al. 2019 (arXiv:1909.06335), with one draw per label (as in Li et al. 2022, arXiv:2102.02079).
    The same seed and set of labels give the same proportions. A client may get no row.
    """
    rng = np.random.default_rng(seed)
    names = sorted(set(labels))
    # (labels, clients); drawn first, so that the proportions do not depend on the numbers of rows
    mixes = rng.dirichlet([alpha] * clients, size=len(names))
    shares: Shares = [[] for _ in range(clients)]
    for name, mix in zip(names, mixes, strict=True):
        rows = rng.permutation([number for number, label in enumerate(labels) if label == name])
        cuts = np.rint(np.cumsum(mix)[:-1] * len(rows)).astype(int)
        for share, part in zip(shares, np.split(rows, cuts), strict=True):
            share.extend(part.tolist())
    return [sorted(share) for share in shares]


def natural(sizes: Mapping[str, int], clients: int) -> list[str]:
    """The owners that become clients: the `clients` owners with most rows, in the order of their names.

    sizes: owner -> its number of rows. Raises DataError for fewer owners than there are clients.
    """
    if len(sizes) < clients:
        raise DataError(
            f"the data have {len(sizes)} natural clients, but the federation has {clients}; "
            "use fewer clients or data.partitioner = 'iid'"
        )
    largest = sorted(sizes, key=lambda owner: (-sizes[owner], by_number(owner)))[:clients]
    return sorted(largest, key=by_number)


def flipped_clients(clients: int, share: float, seed: int) -> set[int]:
    """The clients whose preferences are flipped: round(share * clients) of them, with halves rounded to even."""
    return set(rng_for(seed, "flipped clients").sample(range(clients), round(share * clients)))


def by_number(name: str) -> list[tuple[int, str]]:
    """A sort key that puts client-2 before client-10."""
    pieces: list[str] = []
    for character in name:
        if pieces and pieces[-1][-1].isdecimal() == character.isdecimal():
            pieces[-1] += character
        else:
            pieces.append(character)
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces] + [(-2, name)]


def held_out(keys: Sequence[str], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Row numbers to train on and to hold out, both in order; equal keys (the same row twice) stay together.

    Each side has at least one row if there are two different rows and fraction > 0.
    """
    distinct = sorted(set(keys))
    rng_for(seed, "held out").shuffle(distinct)
    count = 0 if fraction == 0 else max(1, round(fraction * len(distinct)))
    out = set(distinct[: min(count, len(distinct) - 1)]) if distinct else set()
    numbers = range(len(keys))
    return [n for n in numbers if keys[n] not in out], [n for n in numbers if keys[n] in out]
