"""What the clients of a simulation hold, asked of each of them in this process, before Flower and Ray start.

Each is asked what the server asks first in a run (`Site.hello`), so whatever would keep a client out of the run is
raised here. The tokens go to the caches on disk where the clients of the run will look for them.
"""

import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from cli.check.holdings import Holding, rendered, tokens, uncut_lengths
from client_app.site import Node, Site
from core.errors import ConfigError
from core.sections import Config
from tasks.base import Example
from tasks.forward.setup import load_base
from tasks.model.base import Base
from tasks.training import engine


def loaded(config: Config) -> Base:
    """The base model as every client has it. Raises ConfigError."""
    return load_base(config.model, config.lora, config.task_choice.build().private_parts)


def survey(config: Config, clients: int, *, lengths: bool) -> Iterator[Holding]:
    """Each client's rows in counts, with the uncut length of every training row if `lengths`.

    Raises ConfigError and DataError for what would keep a client out of the run.
    """
    _check_writable(Site(config, Node(0, clients)).state_dir)
    for client in range(clients):
        site = Site(config, Node(client, clients))
        hello = site.hello({"simulation": True})
        base, rows = site.base(), site.parts()[0]
        kept = engine.encode_rows(base, site.task, rows, config, site.cache).usable
        yield Holding(
            client,
            len(kept),
            len(site.rows().heldout),
            hello["skipped"],
            hello["census"],
            sum(tokens(example) >= config.train.max_length for example in kept),
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
    """ConfigError where caches and private memory cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"the clients keep caches and private memory in {folder}, which cannot be written: {error.strerror}; "
            "name another folder with client.state-dir or ACCORD_HOME"
        ) from error
