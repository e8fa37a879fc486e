"""Rows from the Hugging Face hub, or from a local folder or file that `datasets` can load."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow
from datasets.exceptions import DatasetGenerationError, DatasetsError

from core.errors import ConfigError
from core.types import Json
from tasks.data.base import BadRow, Found, owner_of
from tasks.pretrained.folder import is_path
from tasks.pretrained.hub_errors import HUB_ERRORS, Wanted, explain, is_of_hub, offline
from tasks.pretrained.snapshot import MAIN, resolve

READERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}


@dataclass(frozen=True)
class Hub:
    dataset: str = ""
    config: str = ""  # of the data set; "" for its only one, or its default
    revision: str = MAIN
    split: str = "train"
    client_column: str = "client_id"

    def find(self, seed: int, clients: int) -> Iterator[Found]:
        name = " ".join(filter(None, [self.dataset, self.config, f"split {self.split}"]))
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
        """Raises ConfigError, one line that says what to do."""
        if not self.dataset:
            raise ConfigError("data.source = 'hub' needs data.dataset: a hub id or a local folder")
        place = Path(self.dataset).expanduser()
        wanted = Wanted("data.dataset", self.dataset, self.revision, "dataset")
        try:
            if not place.exists():
                return self._downloaded(wanted)
            if self.revision != MAIN:
                raise ConfigError(
                    f"data.revision = {self.revision!r} has no effect: data.dataset = {self.dataset!r} is a local "
                    f"place; leave it at {MAIN!r}"
                )
            if place.is_file():
                if self.config:
                    raise ConfigError(
                        f"data.config = {self.config!r} has no effect: data.dataset = {self.dataset!r} is a single "
                        "file; leave it empty"
                    )
                return _whole(datasets.load_dataset(_reader(place), data_files=str(place), split=self.split))
            return _whole(datasets.load_dataset(str(place), self.config or None, split=self.split))
        except (*HUB_ERRORS, DatasetsError, ValueError, RuntimeError, NotImplementedError) as error:
            if is_of_hub(error):
                raise ConfigError(explain(error, wanted)) from error
            config = f", data.config = {self.config!r}" if self.config else ""
            raise ConfigError(
                f"data.dataset = {self.dataset!r}{config}, data.split = {self.split!r}: {_reason(error)}"
            ) from None  # what it came from may quote a row

    def _downloaded(self, wanted: Wanted) -> datasets.Dataset:
        """From the Hub at one commit, or the same commit from the cache. Raises ConfigError or one of HUB_ERRORS."""
        if is_path(self.dataset):
            raise ConfigError(f"data.dataset = {self.dataset!r}: no such folder or file")
        commit = resolve(wanted)
        loaded = _whole(
            datasets.load_dataset(self.dataset, self.config or None, revision=commit, split=self.split)
        )
        if not any(commit in Path(file["filename"]).parts for file in loaded.cache_files):
            # where the Hub gives an error, `datasets` takes whatever it holds of this name
            raise ConfigError(offline(wanted, f"commit {commit[:12]} (it holds another)"))
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
    if names := re.search(r"one among the available configs: (\[.*\])|Available: (\[.*\])", str(error)):
        return f"set data.config to one of its configurations, {names[1] or names[2]}"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _whole(loaded: object) -> datasets.Dataset:
    assert isinstance(loaded, datasets.Dataset), type(loaded)
    return loaded


def _reader(path: Path) -> str:
    """What `datasets` reads a single file with. Raises ConfigError for another kind of file."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    reader = READERS.get(Path(name).suffix.lower())
    if reader is None:
        raise ConfigError(
            f"data.dataset = {str(path)!r}: expected a file that ends in {', '.join(READERS)}, or a folder"
        )
    return reader


PLUGIN = Hub
