"""The one place where a client gets its rows: a source or its own file, shared out, split, seen by the task."""

import hashlib
import json
from dataclasses import dataclass, field

from core.errors import ConfigError, DataError
from core.sections import Config
from core.seeds import seed_for
from core.types import Json
from tasks.base import Row, Task
from tasks.data.base import PAIR, THUMB, ColumnUse, Source, kind_of, ktor, load, thumbs, view
from tasks.data.clients import partition
from tasks.data.clients.shares import pool, share_of_one, turned
from tasks.data.clients.split import HeldOut, prompt_key, share_in
from tasks.data.jsonl import Jsonl


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
    split: HeldOut = field(default_factory=HeldOut)
    # its natural client in a shared source; "" for a private file and for other partitions
    owner: str = field(default="", compare=False)
    # owners that are no client, by reason; told by client 0 alone
    left_out: Json = field(default_factory=dict, compare=False)


def client_rows(
    config: Config, task: Task, client: int, clients: int, *, path: str = "", everyone: bool = False
) -> ClientRows:
    """The rows of `client`, one of `clients`; a function of the arguments and of the files they name.

    path: a site's own private file, which replaces the source. everyone: all clients' training rows in
    place of the client's own (the centralized baseline); its held-out rows stay its own.
    Raises DataError for a bad row (with file and line) or a client without rows, ConfigError for settings
    that need all rows in one place where there is only a private file. Never keeps rows on disk.
    """
    flips = client in partition.flipped(clients, config.data.flipped_clients, config.run.seed)
    if path:
        _refuse_what_needs_all_rows(config, client, everyone)
        source: Source = Jsonl(path)
        table = load(source, config.run.seed, 1, config.data.on_bad_row)
        own, shares, trained_on, left_out = share_of_one(config, table.entries), (), None, {}
        own = turned(own) if flips else own
    else:
        source = config.source_choice.build()
        whole = pool(config, task.columns, source.stamp(), clients)
        table, shares, trained_on = whole.table, whole.shares, whole.prompts
        own, left_out = shares[client], whole.left_out
    if not own.train:
        raise DataError(_empty(config, client, clients, path), names=[path])
    if everyone:
        train = view([row for share in shares for row in share.train], task.columns)
    elif config.data.allocation == "ktor":
        train = _redistributed(config, [share.train for share in shares])[client]
    else:
        train = view(own.train, task.columns)
    if not train:
        raise DataError(
            f"client {client} has {len(own.train)} rows, but none to train task.name = {config.task_choice.name!r} on"
        )
    natural = not path and config.data.partitioner == "natural"
    prompts = trained_on if everyone and trained_on else {prompt_key(row["prompt"]) for row in train}
    shared = share_in(own.heldout, prompts)
    anywhere = None if trained_on is None else share_in(own.heldout, trained_on)
    return ClientRows(
        train,
        own.heldout,
        dict(table.skipped) if path or client == 0 else {},
        _fingerprint(config.run.seed, [own.train, own.heldout]),
        _truth(source.truth(client) if natural else None, flips, config),
        table.columns,
        table.unread,
        HeldOut(len(own.heldout), own.unit, shared, anywhere),
        own.owner,
        left_out if client == 0 else {},
    )


def stamp(config: Config, path: str) -> Json:
    """A hashable value that changes when the rows of client_rows do."""
    source: Source = Jsonl(path) if path else config.source_choice.build()
    return source.stamp()


def forget_tables() -> None:
    """Let go of the sources that this process has read."""
    pool.cache_clear()


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
