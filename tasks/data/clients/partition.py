"""How rows are shared out over simulated clients: pure functions from counts and labels to row numbers."""

from collections.abc import Mapping, Sequence

import numpy as np

from core.errors import DataError
from core.seeds import rng_for

Shares = list[list[int]]  # of each client, the numbers of its rows


def iid(rows: int, clients: int, seed: int) -> Shares:
    """A shuffled deck cut into contiguous shares whose sizes differ by at most one, the larger first.

    The order is `numpy.random.default_rng(seed).permutation`, as `datasets` shuffles and shards.
    """
    order = np.random.default_rng(seed).permutation(rows)
    return [share.tolist() for share in np.array_split(order, clients)]


def dirichlet(labels: Sequence[str], clients: int, alpha: float, seed: int) -> Shares:
    """Each label's rows are shared out in proportions drawn from Dirichlet(alpha): the smaller, the more skewed.

    Hsu et al. 2019 (arXiv:1909.06335), with the draw per label (as in Li et al. 2022, arXiv:2102.02079).
    The same seed and set of labels give the same proportions. A client may come out empty.
    """
    rng = np.random.default_rng(seed)
    names = sorted(set(labels))
    mixes = rng.dirichlet([alpha] * clients, size=len(names))  # (labels, clients), before any other draw
    shares: Shares = [[] for _ in range(clients)]
    for name, mix in zip(names, mixes, strict=True):
        own = rng.permutation([number for number, label in enumerate(labels) if label == name])
        cuts = np.rint(np.cumsum(mix)[:-1] * len(own)).astype(int)
        for share, part in zip(shares, np.split(own, cuts), strict=True):
            share.extend(part.tolist())
    return [sorted(share) for share in shares]


def natural(sizes: Mapping[str, int], clients: int) -> list[str]:
    """Each client is one of the data's own: the `clients` owners with most rows, in the order of their names.

    sizes: owner -> its number of rows. Raises DataError for fewer owners than there are clients.
    """
    if len(sizes) < clients:
        raise DataError(
            f"the data have {len(sizes)} natural clients, but the federation has {clients}; "
            "use fewer clients or data.partitioner = 'iid'"
        )
    largest = sorted(sizes, key=lambda owner: (-sizes[owner], by_number(owner)))[:clients]
    return sorted(largest, key=by_number)


def flipped(clients: int, share: float, seed: int) -> set[int]:
    """Which clients want the opposite: round(share * clients) of them, a half to the even number."""
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

    At least one row is held out and one kept wherever there are two different ones and fraction > 0.
    """
    distinct = sorted(set(keys))
    rng_for(seed, "held out").shuffle(distinct)
    wanted = 0 if fraction == 0 else max(1, round(fraction * len(distinct)))
    out = set(distinct[: min(wanted, len(distinct) - 1)]) if distinct else set()
    numbers = range(len(keys))
    return [n for n in numbers if keys[n] not in out], [n for n in numbers if keys[n] in out]
