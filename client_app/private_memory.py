"""A client's private memory: on its own disk, one version a round, read back at the round the server names."""

import re
from pathlib import Path

from core import store
from core.errors import ConfigError, MemoryMissing
from core.tree import Tree


class Memory:
    """Private trees of one client in one run, under `<state dir>/memory/<run>/<client>/<round>`."""

    def __init__(self, state_dir: Path, run: str, client: int) -> None:
        # the run's name comes from the server and becomes a folder here
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", run):
            raise ConfigError(f"a run is named by letters, digits, '.', '_' and '-', got {run!r}")
        self.folder = state_dir / "memory" / run / str(client)
        self.client = client

    def load(self, rnd: int) -> dict[str, Tree]:
        """What was saved in round `rnd`; 0 is empty. Raises MemoryMissing, never a silent zero."""
        if rnd == 0:
            return {}
        try:
            return store.load(store.round_folder(self.folder, rnd))[0]
        except FileNotFoundError as error:
            raise MemoryMissing(
                f"client {self.client} has no memory of round {rnd} in {self.folder}; was its disk replaced?"
            ) from error

    def save(self, rnd: int, trees: dict[str, Tree], *, recalled: int) -> None:
        """Keep a version for round `rnd`; only versions older than the one recalled are deleted."""
        store.save(store.round_folder(self.folder, rnd), trees, {})
        store.prune(self.folder, {r for r in store.rounds(self.folder) if r >= recalled})
