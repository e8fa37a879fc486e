"""InOrder: take updates in any order and pass them on in a fixed one; early updates wait on disk."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from core import store
from core.tree import flat, unflat
from core.types import Update
from strategies.rounds.spool import spool_file


class InOrder:
    """Passes on the updates of `clients` in that order, each as soon as all before it have come or been skipped.

    At most one update is in memory: an early one waits in a file in `folder` (strategies/rounds/spool.py).
    """

    def __init__(self, clients: Sequence[int], hand_on: Callable[[Update], None], folder: Path) -> None:
        self.turns, self.hand_on, self.folder = list(clients), hand_on, folder
        self.early: dict[int, _OnDisk | None] = {}

    def put(self, update: Update) -> None:
        """Pass the update on if it is its turn, else store it."""
        if self.turns[0] == update.client:
            self.hand_on(update)
            self.turns.pop(0)
            self._advance()
        else:
            self.early[update.client] = _OnDisk(update, self.folder)

    def skip(self, client: int) -> None:
        """Do not wait for this client."""
        self.early[client] = None
        self._advance()

    def _advance(self) -> None:
        while self.turns and self.turns[0] in self.early:
            waiting = self.early.pop(self.turns.pop(0))
            if waiting:
                self.hand_on(waiting.read())


class _OnDisk:
    """An update whose tensors are in a temporary file."""

    def __init__(self, update: Update, folder: Path) -> None:
        self.update = replace(update, trees={})
        self.shapes = {name: {n: t.shape for n, t in tree.items()} for name, tree in update.trees.items()}
        self.file = spool_file(folder)  # closed by read
        with store.writing(folder):
            for tree in update.trees.values():
                np.save(self.file, flat(tree).numpy())
            self.file.flush()

    def read(self) -> Update:
        with self.file as file:
            file.seek(0)
            trees = {
                name: unflat(torch.from_numpy(np.load(file)), shapes) for name, shapes in self.shapes.items()
            }
        return replace(self.update, trees=trees)
