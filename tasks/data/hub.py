"""Rows from the Hugging Face hub, or from a local folder or file that `datasets` can load."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import datasets
import pyarrow
from datasets.exceptions import DatasetGenerationError, DatasetsError

from core.errors import ConfigError
from core.types import Json
from tasks.data.base import BadRow, Found, owner_of


@dataclass(frozen=True)
class Hub:
    dataset: str = ""
    split: str = "train"
    client_column: str = "client_id"

    def find(self, seed: int, clients: int) -> Iterator[Found]:
        name = f"{self.dataset} split {self.split}"
        empty = True
        for number, raw in enumerate(self._load()):
            empty = False
            assert isinstance(raw, dict), type(raw)
            yield self._found(name, f"{name} row {number}", raw)
        if empty:
            yield Found(name, fault="holds no row", file=name)

    def stamp(self) -> Json:
        return ()  # datasets keeps its own, checked copy; what changes on the hub is met by the next process

    def prompts(self) -> list[str]:
        return []

    def truth(self, client: int) -> int | None:
        return None

    def _found(self, name: str, where: str, raw: Json) -> Found:
        try:
            return Found(
                where, raw, owner_of(raw, self.client_column), file=name, client_column=self.client_column
            )
        except BadRow as bad:
            return Found(where, fault=bad.reason, detail=bad.detail, file=name)

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
            raise ConfigError(
                f"data.dataset = {self.dataset!r}, data.split = {self.split!r}: {_reason(error)}"
            ) from None  # what it came from may quote a row
        assert isinstance(loaded, datasets.Dataset), type(loaded)
        return loaded


def _reason(error: Exception) -> str:
    """What went wrong, without a value of the data: pyarrow and the parsers of `datasets` quote them."""
    cause: BaseException | None = error
    while cause:
        if isinstance(
            cause, DatasetGenerationError | pyarrow.ArrowException | UnicodeError | json.JSONDecodeError
        ):
            origin = error.__cause__ or error
            return (
                f"its files cannot be read as one table ({type(origin).__name__}): is each of them whole, and do all "
                "rows have the same columns with values of the same type?"
            )
        cause = cause.__cause__ or cause.__context__
    return str(error).splitlines()[0]


PLUGIN = Hub
