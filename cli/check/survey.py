"""Count the rows of a simulation's clients in this process, before Flower and Ray start.

Each client does what it does for the server's first message in a run (`Site.hello`), so any error that would stop it in
the run is raised here. Tokens are written to the caches on disk, where the clients of the run will read them.
"""

import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from cli.check.holdings import Holding, rendered, tokens, uncut_lengths
from client_app.node import Node
from client_app.site import Site
from core.errors import ConfigError
from core.sections import Config
from core.types import HelloRequest
from tasks.base import Example
from tasks.forward.setup import load_base
from tasks.model.base import Base
from tasks.training import engine


def loaded(config: Config) -> Base:
    """Load the base model as every client does. Raises ConfigError."""
    return load_base(config.model, config.lora, config.task_choice.build().private_parts)


def survey(config: Config, clients: int, *, lengths: bool) -> Iterator[Holding]:
    """Count each client's rows, and if `lengths`, measure the uncut length of every training row.

    Raises ConfigError or DataError if a client could not take part in the run.
    """
    _check_writable(Site(config, Node(0, clients)).state_dir)
    for client in range(clients):
        site = Site(config, Node(client, clients))
        hello = site.hello(HelloRequest("check", simulation=True))
        base, rows = site.base(), site.parts()[0]
        examples = engine.encode_rows(base, site.task, rows, config, site.cache).usable
        yield Holding(
            client,
            len(examples),
            len(site.rows().heldout),
            hello["skipped"],
            hello["row_counts"],
            sum(tokens(example) >= config.train.max_length for example in examples),
            hello,
            uncut_lengths(base, site.task, rows, config) if lengths else (),
        )


def first_rows(config: Config, clients: int, count: int) -> list[list[tuple[str, str]]]:
    """The first `count` training rows, client by client, as the model will see them."""
    return rendered(loaded(config), list(islice(_examples(config, clients), count)))


def _examples(config: Config, clients: int) -> Iterator[Example]:
    for client in range(clients):
        site = Site(config, Node(client, clients))
        yield from engine.encode_rows(site.base(), site.task, site.parts()[0], config, site.cache).usable


def _check_writable(folder: Path) -> None:
    """Raise ConfigError if caches and private memory cannot be written to `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"cannot write the clients' caches and private memory to {folder}: {error.strerror}; "
            "name another folder with client.state-dir or ACCORD_HOME"
        ) from error
