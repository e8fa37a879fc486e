"""The rows of a client, from a shared source or its own file: partitioned, split and converted for the task."""

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
from tasks.data.clients.own_file import own_source
from tasks.data.clients.shares import flip_share, make_share, pool
from tasks.data.clients.split import HeldOut, prompt_key, share_in


@dataclass(frozen=True)
class ClientRows:
    """The rows of one client, with facts about them for reports."""

    train: list[Row]  # with the task's columns
    heldout: list[Row]  # pairs where the data are pairs, for every task
    skipped: dict[str, int]  # bad rows by reason; for a shared source only client 0 reports them
    fingerprint: str  # of the client's rows before tasks.data.base.view, keyed by the run's seed
    truth: int | None  # planted preference type
    columns: ColumnUse = field(default_factory=ColumnUse)  # of the whole source
    unread: tuple[str, ...] = ()  # other files in the folder of the source
    split: HeldOut = field(default_factory=HeldOut)
    # the natural client in a shared source; "" for a private file and for other partitions
    owner: str = field(default="", compare=False)
    # owners that are not clients, by reason; only client 0 reports them
    left_out: Json = field(default_factory=dict, compare=False)


def client_rows(
    config: Config,
    task: Task,
    client: int,
    clients: int,
    *,
    path: str = "",
    reader: str = "",
    everyone: bool = False,
) -> ClientRows:
    """The rows of client number `client` of `clients`; depends only on the arguments and the files they name.

    path: a site's private file, which replaces the configured source. reader: the data source that reads it; "" for the
    one that its ending names. everyone: train on the rows of all clients (the centralized baseline); the held-out rows
    are still the client's own.
    Raises DataError for a bad row (with file and line) and for a client without rows, and ConfigError if `path` is
    set together with settings that need the rows of all clients. Writes no rows to disk.
    """
    flips = client in partition.flipped_clients(clients, config.data.flipped_clients, config.run.seed)
    if path:
        _refuse_what_needs_all_rows(config, client, everyone)
        source: Source = own_source(path, reader)
        table = load(source, config.run.seed, 1, config.data.on_bad_row)
        share, shares, all_prompts, left_out = make_share(config, table.entries), (), None, {}
        share = flip_share(share) if flips else share
    else:
        source = config.source_choice.build()
        shared_pool = pool(config, task.columns, source.stamp(), clients)
        table, shares, all_prompts = shared_pool.table, shared_pool.shares, shared_pool.prompts
        share, left_out = shares[client], shared_pool.left_out
    if not share.train:
        raise DataError(_no_rows_message(config, client, clients, path), names=[path])
    if everyone:
        train = view([row for each in shares for row in each.train], task.columns)
    elif config.data.allocation == "ktor":
        train = _redistribute(config, [each.train for each in shares])[client]
    else:
        train = view(share.train, task.columns)
    if not train:
        raise DataError(
            f"client {client} has {len(share.train)} rows, but none to train task.name = {config.task_choice.name!r} on"
        )
    natural = not path and config.data.partitioner == "natural"
    prompts = all_prompts if everyone and all_prompts else {prompt_key(row["prompt"]) for row in train}
    shared = share_in(share.heldout, prompts)
    anywhere = None if all_prompts is None else share_in(share.heldout, all_prompts)
    return ClientRows(
        train,
        share.heldout,
        # client 0 alone reports on a shared source, so that a sum over clients is right
        dict(table.skipped) if path or client == 0 else {},
        _fingerprint(config.run.seed, [share.train, share.heldout]),
        _truth(source.truth(client) if natural else None, flips, config),
        table.columns,
        table.unread,
        HeldOut(len(share.heldout), share.unit, shared, anywhere),
        share.owner,
        left_out if client == 0 else {},
    )


def stamp(config: Config, path: str, reader: str = "") -> Json:
    """A hashable value that changes when the rows of client_rows do."""
    source: Source = own_source(path, reader) if path else config.source_choice.build()
    return source.stamp()


def _redistribute(config: Config, shares: list[list[Row]]) -> list[list[Row]]:
    """The training rows of all clients as thumbs, redistributed by tasks.data.base.ktor."""
    kinds = {kind_of(row) for rows in shares for row in rows}
    if not kinds <= {PAIR, THUMB}:
        raise ConfigError(
            "data.allocation = 'ktor' redistributes pairs or thumbs, but the data are demonstrations; use 'ktoo'"
        )
    clients = [thumbs(rows) if kinds == {PAIR} else rows for rows in shares]
    return ktor(clients, config.data.allocation_seed)


def _truth(planted: int | None, flips: bool, config: Config) -> int | None:
    """The planted type t of a client; where some clients are flipped, 2 t, or 2 t + 1 for a flipped client."""
    return 2 * (planted or 0) + flips if config.data.flipped_clients else planted


def _refuse_what_needs_all_rows(config: Config, client: int, everyone: bool) -> None:
    """Raises ConfigError for a setting that cannot work with a private file for each client."""
    settings = {
        "strategy.name = 'centralized'": everyone,
        "data.allocation = 'ktor'": config.data.allocation == "ktor",
        f"data.partitioner = {config.data.partitioner!r}": config.data.partitioner != "natural",
    }
    for setting, is_set in settings.items():
        if is_set:
            raise ConfigError(
                f"{setting} needs every row in one place, but client {client} reads its own file"
            )


def _no_rows_message(config: Config, client: int, clients: int, path: str) -> str:
    if path:
        return f"client {client} has no training rows in {path}"
    hint = (
        "; raise data.dirichlet-alpha or use fewer clients" if config.data.partitioner == "dirichlet" else ""
    )
    return f"client {client} of {clients} gets no training rows (data.source = {config.source_choice.name!r}){hint}"


def _fingerprint(seed: int, rows: Json) -> str:
    key = seed_for(seed, "fingerprint").to_bytes(8, "big")
    text = json.dumps(rows, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16, key=key).hexdigest()
