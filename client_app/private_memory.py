"""A client's private memory: tensors on its own disk, one version per round."""

import re
from pathlib import Path

from core import store
from core.errors import ConfigError, MemoryMissing
from core.tree import Tree


class Memory:
    """Private trees of one client in one run, under `<state dir>/memory/<run>/<client>/<round>`."""

    def __init__(self, state_dir: Path, run: str, client: int) -> None:
        # the run's name comes from the server and becomes a folder name here
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", run):
            raise ConfigError(f"run must consist of letters, digits, '.', '_' and '-', got {run!r}")
        self.folder = state_dir / "memory" / run / str(client)
        self.client = client

    def load(self, rnd: int) -> dict[str, Tree]:
        """Return what was saved in round `rnd`; round 0 is empty. Raises MemoryMissing if it is not on disk."""
        if rnd == 0:
            return {}
        try:
            return store.load(store.round_folder(self.folder, rnd))[0]
        except FileNotFoundError as error:
            raise MemoryMissing(
                f"client {self.client} has no memory of round {rnd} in {self.folder}; was its disk replaced?"
            ) from error

    def save(self, rnd: int, trees: dict[str, Tree], *, recalled: int) -> None:
        """Save the version of round `rnd`.

        Deletes only versions older than the recalled one: a server that lost a round may ask for it again.
        """
        store.save(store.round_folder(self.folder, rnd), trees, {})
        store.prune(self.folder, {r for r in store.rounds(self.folder) if r >= recalled})
