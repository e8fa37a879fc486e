"""Divide the rows of a shared source over its clients: partition, split, and flip preferences."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.caches import Holds, cached
from core.errors import DataError
from core.sections import Config
from core.seeds import seed_for
from core.types import Json
from tasks.base import Row, Task
from tasks.data.base import Entry, Source, Table, flip_preference, load, view
from tasks.data.clients import partition
from tasks.data.clients.split import Split, Unit, prompt_key, split_rows

NAMED_OWNERS = 3  # of the owners that are not clients, how many are named


@dataclass(frozen=True)
class Share:
    """One client's rows."""

    train: list[Row]  # before tasks.data.base.view
    heldout: list[Row]
    unit: Unit  # of the split
    owner: str = ""  # the natural client that the rows belong to

    @property
    def rows(self) -> int:
        return len(self.train) + len(self.heldout)


@dataclass(frozen=True)
class Pool:
    """The table of a shared source and every client's share of it."""

    table: Table
    shares: tuple[Share, ...]  # by client
    prompts: frozenset[str]  # keys of the prompts that any client trains on
    left_out: Json  # owners that are not clients, by reason: their number, their rows, the first names


@cached(Holds.RUN, maxsize=2)  # one process of a simulation serves many clients
def pool(config: Config, columns: tuple[str, ...], stamp: Json, clients: int) -> Pool:
    """The configured source divided over a federation of `clients`.

    columns: those of the task. stamp: the source's stamp(), which changes with the rows; a part of the cache key only.
    """
    source: Source = config.source_choice.build()
    table = load(source, config.run.seed, clients, config.data.on_bad_row)
    left_out: Json = {}
    if config.data.partitioner == "natural":
        shares, left_out = _natural(config, table, columns, clients)
    else:
        shares = [make_share(config, entries) for entries in _partitioned(config, table, clients)]
    flipped = partition.flipped_clients(clients, config.data.flipped_clients, config.run.seed)
    shares = [flip_share(share) if client in flipped else share for client, share in enumerate(shares)]
    prompts = frozenset(prompt_key(row["prompt"]) for share in shares for row in share.train)
    return Pool(table, tuple(shares), prompts, left_out)


def owners_of(config: Config, task: Task) -> dict[str, int]:
    """The natural clients of the configured source that have a row to train on, with their numbers of rows.

    Raises DataError for a bad row, for rows without an owner, and if no owner has a row to train on.
    """
    source: Source = config.source_choice.build()
    table = load(source, config.run.seed, 1, config.data.on_bad_row)
    owned, _ = _owned(config, table, task.columns)
    if not owned:
        raise DataError(
            f"data.source = {config.source_choice.name!r} has no row to train task.name = "
            f"{config.task_choice.name!r} on"
        )
    return {owner: share.rows for owner, share in owned.items()}


def make_share(config: Config, entries: Sequence[Entry], owner: str = "") -> Share:
    """Split one client's rows: by the source's own split, else by a seeded one (tasks/data/clients/split.py)."""
    rows, numbers = [entry.row for entry in entries], range(len(entries))
    if any(entry.heldout for entry in entries):
        heldout = [n for n in numbers if entries[n].heldout]
        split = Split([n for n in numbers if not entries[n].heldout], heldout, "source")
    else:
        split = split_rows(rows, config.data.eval_fraction, seed_for(config.run.seed, "heldout"))
    return Share([rows[n] for n in split.train], [rows[n] for n in split.heldout], split.unit, owner)


def flip_share(share: Share) -> Share:
    """The share with the preference of every row flipped."""
    train, heldout = ([flip_preference(row) for row in part] for part in (share.train, share.heldout))
    return replace(share, train=train, heldout=heldout)


def _natural(
    config: Config, table: Table, columns: tuple[str, ...], clients: int
) -> tuple[list[Share], Json]:
    """Shares of the largest owners, and a summary of the owners left out; see Pool.left_out."""
    owned, untrainable = _owned(config, table, columns)
    chosen = partition.natural({owner: share.rows for owner, share in owned.items()}, clients)
    smaller = {owner: share.rows for owner, share in owned.items() if owner not in chosen}
    left_out = {
        reason: {
            "owners": len(sizes),
            "rows": sum(sizes.values()),
            "names": sorted(sizes, key=partition.by_number)[:NAMED_OWNERS],
        }
        for reason, sizes in (("smaller", smaller), ("untrainable", untrainable))
        if sizes
    }
    return [owned[owner] for owner in chosen], left_out


def _owned(config: Config, table: Table, columns: tuple[str, ...]) -> tuple[dict[str, Share], dict[str, int]]:
    """The share of each owner that has a row to train on, and the row counts of the owners that have none."""
    owned: dict[str, list[Entry]] = {}
    for entry in table.entries:
        owned.setdefault(entry.owner, []).append(entry)
    if unnamed := len(owned.get("", [])):
        raise DataError(
            f"{unnamed} of {len(table.entries)} rows do not say whose they are; set data.client-column, "
            "or data.partitioner = 'iid'"
        )
    shares = {owner: make_share(config, entries, owner) for owner, entries in owned.items()}
    trainable = {owner: share for owner, share in shares.items() if view(share.train, columns)}
    return trainable, {o: share.rows for o, share in shares.items() if o not in trainable}


def _partitioned(config: Config, table: Table, clients: int) -> list[list[Entry]]:
    """Every client's entries; a source's own held-out rows are partitioned separately by the same rule."""
    partitioner, entries = config.data.partitioner, table.entries
    by_client: list[list[Entry]] = [[] for _ in range(clients)]
    for heldout in (False, True):
        part = [entry for entry in entries if entry.heldout == heldout]
        if partitioner == "iid":
            shares = partition.iid(len(part), clients, seed_for(config.run.seed, "iid", int(heldout)))
        else:  # the same seed for both, so that a client's held-out rows are mixed like its training rows
            seed = seed_for(config.run.seed, "dirichlet")
            shares = partition.dirichlet([e.owner for e in part], clients, config.data.dirichlet_alpha, seed)
        for client_entries, share in zip(by_client, shares, strict=True):
            client_entries.extend(part[number] for number in share)
    return by_client
