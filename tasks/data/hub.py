"""Rows from the Hugging Face hub, or from a local folder or file that `datasets` can load."""

from collections.abc import Iterator
from dataclasses import dataclass

import datasets
from datasets.exceptions import DatasetsError

from core.errors import ConfigError
from core.types import Json
from tasks.data.base import Found


@dataclass(frozen=True)
class Hub:
    dataset: str = ""
    split: str = "train"
    client_column: str = "client_id"

    def find(self, seed: int, clients: int) -> Iterator[Found]:
        for number, raw in enumerate(self._load()):
            assert isinstance(raw, dict), type(raw)
            owner = raw.get(self.client_column)
            yield Found(
                f"{self.dataset} split {self.split} row {number}", raw, "" if owner is None else str(owner)
            )

    def stamp(self) -> Json:
        return ()  # datasets keeps its own, checked copy; what changes on the hub is met by the next process

    def prompts(self) -> list[str]:
        return []

    def truth(self, client: int) -> int | None:
        return None

    def _load(self) -> datasets.Dataset:
        if not self.dataset:
            raise ConfigError("data.source = 'hub' needs data.dataset: a hub id or a local folder")
        try:
            loaded = datasets.load_dataset(self.dataset, split=self.split)
        except (
            OSError,
            ValueError,
            DatasetsError,
        ) as error:  # not found, not reachable, no such split, no such format
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"data.dataset = {self.dataset!r}, data.split = {self.split!r}: {reason}"
            ) from error
        assert isinstance(loaded, datasets.Dataset), type(loaded)
        return loaded


PLUGIN = Hub
