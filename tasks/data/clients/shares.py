"""How the rows of a shared source become the rows of its clients: shared out, split, turned round."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from core.errors import DataError
from core.sections import Config
from core.seeds import seed_for
from core.types import Json
from tasks.base import Row, Task
from tasks.data.base import Entry, Source, Table, flipped, load, view
from tasks.data.clients import partition
from tasks.data.clients.split import Split, Unit, prompt_key, split_rows

NAMED_OWNERS = 3  # of those that are no client


@dataclass(frozen=True)
class Share:
    """One client's part."""

    train: list[Row]  # before any view
    heldout: list[Row]
    unit: Unit  # of the split
    owner: str = ""  # the natural client it belongs to

    @property
    def rows(self) -> int:
        return len(self.train) + len(self.heldout)


@dataclass(frozen=True)
class Pool:
    """A shared source as it was read, and every client's part of it."""

    table: Table
    shares: tuple[Share, ...]  # by client
    prompts: frozenset[str]  # keys of the prompts that any client trains on
    left_out: Json  # the owners that are no client: how many, their rows, the names of the first


@lru_cache(maxsize=2)  # one process of a simulation serves many clients; `stamp` changes when the rows do
def pool(config: Config, columns: tuple[str, ...], stamp: Json, clients: int) -> Pool:
    """The configured source for a federation of `clients`; columns: of the task. A function of the arguments."""
    source: Source = config.source_choice.build()
    table = load(source, config.run.seed, clients, config.data.on_bad_row)
    left_out: Json = {}
    if config.data.partitioner == "natural":
        shares, left_out = _natural(config, table, columns, clients)
    else:
        shares = [share_of_one(config, entries) for entries in _mixed(config, table, clients)]
    places = partition.flipped(clients, config.data.flipped_clients, config.run.seed)
    shares = [turned(share) if place in places else share for place, share in enumerate(shares)]
    prompts = frozenset(prompt_key(row["prompt"]) for share in shares for row in share.train)
    return Pool(table, tuple(shares), prompts, left_out)


def owners_of(config: Config, task: Task) -> dict[str, int]:
    """The natural clients of the configured source that have a row to train on, with their numbers of rows.

    Raises DataError for a bad row, for rows that do not say whose they are, and where no owner can train.
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


def share_of_one(config: Config, entries: Sequence[Entry], owner: str = "") -> Share:
    """Training and held-out rows of one client: the source's split, else a seeded one (tasks/data/clients/split.py)."""
    rows, numbers = [entry.row for entry in entries], range(len(entries))
    if any(entry.heldout for entry in entries):
        out = [n for n in numbers if entries[n].heldout]
        split = Split([n for n in numbers if not entries[n].heldout], out, "source")
    else:
        split = split_rows(rows, config.data.eval_fraction, seed_for(config.run.seed, "heldout"))
    return Share([rows[n] for n in split.train], [rows[n] for n in split.heldout], split.unit, owner)


def turned(share: Share) -> Share:
    """The share of a client that prefers what the rows reject."""
    train, heldout = ([flipped(row) for row in part] for part in (share.train, share.heldout))
    return replace(share, train=train, heldout=heldout)


def _natural(
    config: Config, table: Table, columns: tuple[str, ...], clients: int
) -> tuple[list[Share], Json]:
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
    """The share of each owner that has a row to train on; the numbers of rows of the owners that have none."""
    owned: dict[str, list[Entry]] = {}
    for entry in table.entries:
        owned.setdefault(entry.owner, []).append(entry)
    if unnamed := len(owned.get("", [])):
        raise DataError(
            f"{unnamed} of {len(table.entries)} rows do not say whose they are; set data.client-column, "
            "or data.partitioner = 'iid'"
        )
    shares = {owner: share_of_one(config, entries, owner) for owner, entries in owned.items()}
    trainable = {owner: share for owner, share in shares.items() if view(share.train, columns)}
    return trainable, {o: share.rows for o, share in shares.items() if o not in trainable}


def _mixed(config: Config, table: Table, clients: int) -> list[list[Entry]]:
    """Every client's entries; a source's own held-out rows are shared out by the same rule."""
    how, entries = config.data.partitioner, table.entries
    out: list[list[Entry]] = [[] for _ in range(clients)]
    for heldout in (False, True):
        part = [entry for entry in entries if entry.heldout == heldout]
        if how == "iid":
            shares = partition.iid(len(part), clients, seed_for(config.run.seed, "iid", int(heldout)))
        else:  # one seed, so that a client's held-out rows are mixed like its training rows
            seed = seed_for(config.run.seed, "dirichlet")
            shares = partition.dirichlet([e.owner for e in part], clients, config.data.dirichlet_alpha, seed)
        for mine, share in zip(out, shares, strict=True):
            mine.extend(part[number] for number in share)
    return out
