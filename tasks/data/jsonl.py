"""Rows from JSON lines, plain or gzip: one file for all clients, or a folder with one file per client."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from core.errors import ConfigError
from core.types import Json
from tasks.data.base import BadRow, SourceRow, owner_of
from tasks.data.reading.folders import ENDINGS, WANTED, checked_file, client_files, client_name, unread
from tasks.data.reading.lines import numbered_lines, parse

__all__ = ["ENDINGS", "PLUGIN", "WANTED", "Jsonl", "client_files"]


@dataclass(frozen=True)
class Jsonl:
    """A source of JSON-lines files."""

    path: str = ""
    # the column that names the client of a row in a single file; in a folder, each file is a client
    client_column: str = "client_id"

    own_files: ClassVar[tuple[str, ...]] = (*ENDINGS, "/")

    def rows(self, seed: int, clients: int) -> Iterator[SourceRow]:
        shared = not self._path().is_dir()
        for file in self._files():
            empty = True
            for number, line in numbered_lines(file):
                empty = False
                owner = None if shared else client_name(file)
                yield self._source_row(file, f"{file.name} line {number}", line, owner)
            if empty:
                yield SourceRow(file.name, fault="holds no row", file=file.name)

    def stamp(self) -> Json:
        return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in self._files())

    def prompts(self) -> list[str]:
        return []

    def truth(self, client: int) -> int | None:
        return None

    def unread(self) -> tuple[str, ...]:
        return unread(self._path()) if self._path().is_dir() else ()

    def _path(self) -> Path:
        if not self.path:
            raise ConfigError(
                "data.source = 'jsonl' needs data.path, or each site's own data-path in its node config"
            )
        return Path(self.path).expanduser()

    def _files(self) -> list[Path]:
        path = self._path()
        return client_files(path) if path.is_dir() else [checked_file(path)]

    def _source_row(self, file: Path, where: str, line: bytes, owner: str | None) -> SourceRow:
        """The row on a line. owner: the client of every row of the file; None if `client_column` names it."""
        column = self.client_column if owner is None else ""
        try:
            raw = parse(line)
            owner = owner_of(raw, column) if owner is None else owner
        except BadRow as bad:
            return SourceRow(where, fault=bad.reason, detail=bad.detail, file=file.name)
        return SourceRow(where, raw, owner, file=file.name, client_column=column)


PLUGIN = Jsonl
