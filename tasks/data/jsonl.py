"""Rows from JSON lines, plain or gzip: one file for all clients, or a folder with one file per client."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError
from core.types import Json
from tasks.data.base import BadRow, Found, owner_of
from tasks.data.reading.folders import ENDINGS, WANTED, client_files, one_file, stem, unread
from tasks.data.reading.lines import numbered_lines, parse

__all__ = ["ENDINGS", "PLUGIN", "WANTED", "Jsonl", "client_files"]


@dataclass(frozen=True)
class Jsonl:
    path: str = ""
    client_column: str = "client_id"  # in one file for all: whose row it is; a folder's files are the clients

    def find(self, seed: int, clients: int) -> Iterator[Found]:
        shared = not self._place().is_dir()
        for file in self._files():
            empty = True
            for number, line in numbered_lines(file):
                empty = False
                yield self._found(file, f"{file.name} line {number}", line, None if shared else stem(file))
            if empty:
                yield Found(file.name, fault="holds no row", file=file.name)

    def stamp(self) -> Json:
        return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in self._files())

    def prompts(self) -> list[str]:
        return []

    def truth(self, client: int) -> int | None:
        return None

    def unread(self) -> tuple[str, ...]:
        return unread(self._place()) if self._place().is_dir() else ()

    def _place(self) -> Path:
        if not self.path:
            raise ConfigError(
                "data.source = 'jsonl' needs data.path, or each site's own data-path in its node config"
            )
        return Path(self.path).expanduser()

    def _files(self) -> list[Path]:
        place = self._place()
        return client_files(place) if place.is_dir() else [one_file(place)]

    def _found(self, file: Path, where: str, line: bytes, owner: str | None) -> Found:
        """owner: of every row of the file; None where a column says it."""
        column = self.client_column if owner is None else ""
        try:
            raw = parse(line)
            owner = owner_of(raw, column) if owner is None else owner
        except BadRow as bad:
            return Found(where, fault=bad.reason, detail=bad.detail, file=file.name)
        return Found(where, raw, owner, file=file.name, client_column=column)


PLUGIN = Jsonl
