"""The one place where a client gets its rows: a source or its own file, shared out, split, seen by the task."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from core.errors import ConfigError, DataError
from core.sections import Choice, Config
from core.seeds import seed_for
from core.types import Json
from tasks.base import Row, Task
from tasks.data.base import (
    PAIR,
    THUMB,
    ColumnUse,
    Entry,
    Source,
    Table,
    flipped,
    kind_of,
    ktor,
    load,
    thumbs,
    view,
)
from tasks.data.jsonl import Jsonl
from tasks.kit import partition


@dataclass(frozen=True)
class ClientRows:
    """What one client holds."""

    train: list[Row]  # with the task's columns
    heldout: list[Row]  # pairs where the data are pairs, for every task
    skipped: dict[str, int]  # bad rows by reason; those of a source that all share are told by client 0 alone
    fingerprint: str  # of its own rows before any view, keyed by the run's seed
    truth: int | None  # planted preference type
    columns: ColumnUse = field(default_factory=ColumnUse)  # of the whole source
    unread: tuple[str, ...] = ()  # files beside those of the source


def client_rows(
    config: Config, task: Task, client: int, clients: int, *, path: str = "", everyone: bool = False
) -> ClientRows:
    """The rows of `client`, one of `clients`; a function of the arguments and of the files they name.

    path: a site's own private file, which replaces the source. everyone: all clients' training rows in
    place of the client's own (the centralized baseline); its held-out rows stay its own.
    Raises DataError for a bad row (with file and line) or a client without rows, ConfigError for settings
    that need all rows in one place where there is only a private file. Never keeps rows on disk.
    """
    if path:
        _refuse_what_needs_all_rows(config, client, everyone)
        source: Source = Jsonl(path)
        table = load(source, config.run.seed, 1, config.data.on_bad_row)
        held = [_split(config, client, table.entries)]
    else:
        source = config.source_choice.build()
        table = _table(config.source_choice, source.stamp(), config.run.seed, clients, config.data.on_bad_row)
        held = [_split(config, place, share) for place, share in enumerate(_shares(config, table, clients))]
    turned = partition.flipped(clients, config.data.flipped_clients, config.run.seed)
    held = [
        ([flipped(row) for row in train], [flipped(row) for row in out]) if place in turned else (train, out)
        for place, (train, out) in zip([client] if path else range(clients), held, strict=True)
    ]
    own, heldout = held[0 if path else client]
    if not own:
        raise DataError(_empty(config, client, clients, path), names=[path])
    if everyone:
        train = view([row for share, _ in held for row in share], task.columns)
    elif config.data.allocation == "ktor":
        train = _redistributed(config, [share for share, _ in held])[client]
    else:
        train = view(own, task.columns)
    if not train:
        raise DataError(
            f"client {client} has {len(own)} rows, but none to train task.name = {config.task_choice.name!r} on"
        )
    natural = not path and config.data.partitioner == "natural"
    return ClientRows(
        train,
        heldout,
        dict(table.skipped) if path or client == 0 else {},
        _fingerprint(config.run.seed, [own, heldout]),
        _truth(source.truth(client) if natural else None, client in turned, config),
        table.columns,
        table.unread,
    )


def stamp(config: Config, path: str) -> Json:
    """A hashable value that changes when the rows of client_rows do."""
    source: Source = Jsonl(path) if path else config.source_choice.build()
    return source.stamp()


@lru_cache(maxsize=2)  # one process of a simulation serves many clients; `stamp` changes when the rows do
def _table(choice: Choice, stamp: Json, seed: int, clients: int, on_bad_row: str) -> Table:
    return load(choice.build(), seed, clients, on_bad_row)


def forget_tables() -> None:
    """Let go of the sources that this process has read."""
    _table.cache_clear()


def _shares(config: Config, table: Table, clients: int) -> list[list[Entry]]:
    """Every client's entries; a source's own held-out rows are shared out by the same rule."""
    how, entries = config.data.partitioner, table.entries
    if how == "natural":
        shares = partition.natural([entry.owner for entry in entries], clients)
        return [[entries[number] for number in share] for share in shares]
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


def _split(config: Config, client: int, entries: Sequence[Entry]) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows of one client: the source's split, else a seeded one."""
    rows = [entry.row for entry in entries]
    if any(entry.heldout for entry in entries):
        return [e.row for e in entries if not e.heldout], [e.row for e in entries if e.heldout]
    seed = seed_for(config.run.seed, "heldout", client)
    train, out = partition.held_out([_text(row) for row in rows], config.data.eval_fraction, seed)
    return [rows[number] for number in train], [rows[number] for number in out]


def _redistributed(config: Config, shares: list[list[Row]]) -> list[list[Row]]:
    kinds = {kind_of(row) for rows in shares for row in rows}
    if not kinds <= {PAIR, THUMB}:
        raise ConfigError("data.allocation = 'ktor' deals out pairs or thumbs; the data are demonstrations")
    clients = [thumbs(rows) if kinds == {PAIR} else rows for rows in shares]
    return ktor(clients, config.data.allocation_seed)


def _truth(planted: int | None, turned: bool, config: Config) -> int | None:
    """A type wanted and its opposite are two: 2 t and 2 t + 1."""
    return 2 * (planted or 0) + turned if config.data.flipped_clients else planted


def _refuse_what_needs_all_rows(config: Config, client: int, everyone: bool) -> None:
    reasons = {
        "strategy.name = 'centralized'": everyone,
        "data.allocation = 'ktor'": config.data.allocation == "ktor",
        f"data.partitioner = {config.data.partitioner!r}": config.data.partitioner != "natural",
    }
    for setting, holds in reasons.items():
        if holds:
            raise ConfigError(
                f"{setting} needs every row in one place, but client {client} reads its own file"
            )


def _empty(config: Config, client: int, clients: int, path: str) -> str:
    if path:
        return f"client {client} has no training rows in {path}"
    hint = (
        "; raise data.dirichlet-alpha or use fewer clients" if config.data.partitioner == "dirichlet" else ""
    )
    return f"client {client} of {clients} gets no training rows (data.source = {config.source_choice.name!r}){hint}"


def _fingerprint(seed: int, rows: Json) -> str:
    key = seed_for(seed, "fingerprint").to_bytes(8, "big")
    return hashlib.blake2b(_text(rows).encode(), digest_size=16, key=key).hexdigest()


def _text(rows: Json) -> str:
    return json.dumps(rows, sort_keys=True, ensure_ascii=True)
