"""Rows from the Hugging Face hub, or from a local folder or file that `datasets` can load."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import ConfigError
from core.types import Json
from tasks.data.base import BadRow, SourceRow, owner_of
from tasks.pretrained.folder import is_path
from tasks.pretrained.hub_errors import HUB_ERRORS, Repository, explain, is_of_hub, offline
from tasks.pretrained.snapshot import MAIN, resolve

if (
    TYPE_CHECKING
):  # importing `datasets` takes seconds, so that functions import it: every site reads this file
    import datasets

READERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}


@dataclass(frozen=True)
class Hub:
    """A source that reads one split of a data set."""

    dataset: str = ""
    config: str = ""  # the data set's configuration; "" for its only or default one
    revision: str = MAIN
    split: str = "train"
    client_column: str = "client_id"

    def rows(self, seed: int, clients: int) -> Iterator[SourceRow]:
        name = " ".join(filter(None, [self.dataset, self.config, f"split {self.split}"]))
        empty = True
        for number, raw in enumerate(self._load()):
            empty = False
            assert isinstance(raw, dict), type(raw)
            yield self._source_row(name, f"{name} row {number}", raw)
        if empty:
            yield SourceRow(name, fault="holds no row", file=name)

    def stamp(self) -> Json:
        return ()  # `datasets` keeps a checked copy; a change on the Hub takes effect in the next process

    def prompts(self) -> list[str]:
        return []

    def truth(self, client: int) -> int | None:
        return None

    def _source_row(self, name: str, where: str, raw: Json) -> SourceRow:
        try:
            return SourceRow(
                where, raw, owner_of(raw, self.client_column), file=name, client_column=self.client_column
            )
        except BadRow as bad:
            return SourceRow(where, fault=bad.reason, detail=bad.detail, file=name)

    def _load(self) -> "datasets.Dataset":
        """The split, from disk or from the Hub. Raises ConfigError, whose one line says what to do."""
        import datasets
        from datasets.exceptions import DatasetsError

        if not self.dataset:
            raise ConfigError(
                "data.source = 'hub' needs data.dataset: an id on the Hub, or a local folder or file"
            )
        path = Path(self.dataset).expanduser()
        repository = Repository("data.dataset", self.dataset, self.revision, "dataset")
        try:
            if not path.exists():
                return self._download(repository)
            if self.revision != MAIN:
                raise ConfigError(
                    f"data.revision = {self.revision!r} has no effect: data.dataset = {self.dataset!r} is a local "
                    f"path; leave it at {MAIN!r}"
                )
            if path.is_file():
                if self.config:
                    raise ConfigError(
                        f"data.config = {self.config!r} has no effect: data.dataset = {self.dataset!r} is a single "
                        "file; leave it empty"
                    )
                return _dataset(datasets.load_dataset(_reader(path), data_files=str(path), split=self.split))
            return _dataset(datasets.load_dataset(str(path), self.config or None, split=self.split))
        except (*HUB_ERRORS, DatasetsError, ValueError, RuntimeError, NotImplementedError) as error:
            if is_of_hub(error):
                raise ConfigError(explain(error, repository)) from error
            config = f", data.config = {self.config!r}" if self.config else ""
            raise ConfigError(
                f"data.dataset = {self.dataset!r}{config}, data.split = {self.split!r}: {_reason(error)}"
            ) from None  # the cause may quote a row

    def _download(self, repository: Repository) -> "datasets.Dataset":
        """The split at one commit, from the Hub or the cache. Raises ConfigError or one of HUB_ERRORS."""
        import datasets

        if is_path(self.dataset):
            raise ConfigError(f"data.dataset = {self.dataset!r}: no such folder or file")
        commit = resolve(repository)
        dataset = _dataset(
            datasets.load_dataset(self.dataset, self.config or None, revision=commit, split=self.split)
        )
        if not any(commit in Path(file["filename"]).parts for file in dataset.cache_files):
            # when the Hub answers with an error, `datasets` falls back to any cached commit of this name
            raise ConfigError(offline(repository, f"commit {commit[:12]} (it holds another)"))
        return dataset


def _reason(error: Exception) -> str:
    """Why a data set cannot be loaded, without any value of the data, which pyarrow and `datasets` quote."""
    import pyarrow
    from datasets.exceptions import DatasetGenerationError

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


def _dataset(loaded: object) -> "datasets.Dataset":
    """Narrow the return type of load_dataset(), which with `split` is one data set."""
    import datasets

    assert isinstance(loaded, datasets.Dataset), type(loaded)
    return loaded


def _reader(path: Path) -> str:
    """The builder with which `datasets` reads a single file. Raises ConfigError for an unknown file ending."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    reader = READERS.get(Path(name).suffix.lower())
    if reader is None:
        raise ConfigError(
            f"data.dataset = {str(path)!r}: expected a file that ends in {', '.join(READERS)}, or a folder"
        )
    return reader


PLUGIN = Hub
