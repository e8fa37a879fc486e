"""Rows from JSON lines, plain or gzip: one file for all clients, or a folder with one file per client."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError
from core.types import Json
from tasks.data.base import Found

ENDINGS = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class Jsonl:
    path: str = ""
    client_column: str = "client_id"  # in one file for all: whose row it is; a folder's files are the clients

    def find(self, seed: int, clients: int) -> Iterator[Found]:
        files = self._files()
        for file in files:
            owner = file.name.split(".jsonl")[0] if Path(self.path).is_dir() else None
            opener = gzip.open if file.name.endswith(".gz") else open
            with opener(file, "rb") as lines:
                try:
                    for number, line in enumerate(lines, start=1):
                        if line.strip():
                            yield self._found(f"{file.name} line {number}", line, owner)
                except (EOFError, gzip.BadGzipFile) as error:
                    raise ConfigError(f"{file} is no complete gzip file: {error}") from error

    def stamp(self) -> Json:
        return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in self._files())

    def prompts(self) -> list[str]:
        return []

    def truth(self, client: int) -> int | None:
        return None

    def _files(self) -> list[Path]:
        if not self.path:
            raise ConfigError(
                "data.source = 'jsonl' needs data.path, or each site's own data-path in its node config"
            )
        path = Path(self.path).expanduser()
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.name.endswith(ENDINGS))
        if not files or not files[0].is_file():
            raise ConfigError(
                f"no {' or '.join(ENDINGS)} file at {self.path} (data.path, or data-path of a node)"
            )
        return files

    def _found(self, where: str, line: bytes, owner: str | None) -> Found:
        try:
            raw = json.loads(line)
        except UnicodeDecodeError:
            return Found(where, fault="is no UTF-8 text")
        except json.JSONDecodeError as error:
            return Found(where, fault=f"malformed JSON: {error.msg} at column {error.colno}")
        if owner is None:
            value = raw.get(self.client_column) if isinstance(raw, dict) else None
            owner = "" if value is None else str(value)
        return Found(where, raw, owner)


PLUGIN = Jsonl
