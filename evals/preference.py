"""Preference accuracy on a file of pairs on the server: the share of pairs whose chosen answer is likelier.

The central counterpart of the clients' held-out `logps/accuracies`, with the same definition.
"""

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from core.errors import ConfigError, DataError
from core.types import Metrics
from evals.base import Benchmark, LanguageModel

COLUMNS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Preference(Benchmark):
    pairs: str = ""  # JSON lines with prompt, chosen and rejected; plain or .gz

    judge: ClassVar[str] = "pairs"

    def check(self) -> None:
        _read(self.pairs)

    def run(self, model: LanguageModel) -> Metrics:
        rows = _read(self.pairs)
        correct = 0
        for row in rows:
            chosen, rejected = model.logprob(row["prompt"], (row["chosen"], row["rejected"]))
            correct += chosen > rejected
        return {"logps/accuracies": correct / len(rows), "examples": float(len(rows))}


def _read(name: str) -> list[dict[str, str]]:
    """Read the pairs. Raises ConfigError for a file that cannot be read, DataError for a line that is not a pair."""
    path = Path(name).expanduser()
    if not name or not path.is_file():
        raise ConfigError(f"eval.pairs = {name!r}: expected a JSON lines file of pairs on the server")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        kind = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else f"cannot be read: {error}"
        raise ConfigError(f"eval.pairs = {name!r} {kind}") from error
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path.name} line {number}: not JSON") from error
        if not isinstance(row, dict) or not all(isinstance(row.get(c), str) and row[c] for c in COLUMNS):
            raise DataError(f"{path.name} line {number}: expected non-empty strings {', '.join(COLUMNS)}")
        rows.append(row)
    if not rows:
        raise DataError(f"{path.name} holds no pairs")
    return rows


PLUGIN = Preference
