"""Rows from one CSV, TSV, JSON or Parquet file, plain or (except Parquet) gzip, read by the ending of its name."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from core.errors import ConfigError
from core.types import Json
from tasks.data.base import BadRow, SourceRow, owner_of
from tasks.data.reading.folders import checked_file
from tasks.data.reading.records import ENDINGS, records


@dataclass(frozen=True)
class Tabular:
    """A source of one file with named columns."""

    path: str = ""
    client_column: str = "client_id"  # names the client of a row

    own_files: ClassVar[tuple[str, ...]] = ENDINGS

    def rows(self, seed: int, clients: int) -> Iterator[SourceRow]:
        file = self._file()
        empty = True
        for place, record in records(file):
            empty = False
            yield self._source_row(file, f"{file.name} {place}", record)
        if empty:
            yield SourceRow(file.name, fault="holds no row", file=file.name)

    def stamp(self) -> Json:
        status = self._file().stat()
        return status.st_mtime_ns, status.st_size

    def prompts(self) -> list[str]:
        return []

    def truth(self, client: int) -> int | None:
        return None

    def _file(self) -> Path:
        if not self.path:
            raise ConfigError(
                "data.source = 'tabular' needs data.path, or each site's own data-path in its node config"
            )
        file = Path(self.path).expanduser()
        if not file.name.lower().endswith(ENDINGS):
            raise ConfigError(
                f"{file}: data.source = 'tabular' reads a file that ends in {', '.join(ENDINGS)}",
                names=[str(file), file.name],
            )
        return checked_file(file, ENDINGS)

    def _source_row(self, file: Path, where: str, record: Json | BadRow) -> SourceRow:
        try:
            if isinstance(record, BadRow):
                raise record
            owner = owner_of(record, self.client_column)
        except BadRow as bad:
            return SourceRow(where, fault=bad.reason, detail=bad.detail, file=file.name)
        return SourceRow(where, record, owner, file=file.name, client_column=self.client_column)


PLUGIN = Tabular
