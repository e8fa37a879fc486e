"""The state of a run on disk: folders of named trees, small files, and JSON lines; written atomically or appended.

Every function that writes raises CheckpointError, in one line, if the disk fails; the previous content then remains.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from core import atomic
from core.errors import CheckpointError
from core.tree import Tree
from core.types import Json

TENSORS, FACTS = "tensors.safetensors", "facts.json"
FORMAT = 1  # of a folder; without a number it was written before formats had one, and is of format 1


def save(folder: Path, trees: Mapping[str, Mapping[str, Tensor]], facts: Json) -> None:
    """Write named trees and facts to `folder`, replacing its content; a crash leaves the old or the new content."""
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic.folder(folder) as part:
            _fill(part, trees, facts)


def _fill(part: Path, trees: Mapping[str, Mapping[str, Tensor]], facts: Json) -> None:
    flat = {f"{tree}\t{name}": t.contiguous() for tree, named in trees.items() for name, t in named.items()}
    save_file(flat, part / TENSORS)
    (part / FACTS).write_text(
        json.dumps({"format": FORMAT, "trees": sorted(trees), "facts": facts}, sort_keys=True)
    )


def load(folder: Path) -> tuple[dict[str, Tree], Json]:
    """Return what `save` wrote. Raises FileNotFoundError if it is absent."""
    document = dict(
        json.loads((folder / FACTS).read_text())
    )  # for JSON that is no object: TypeError or ValueError
    if (number := document.get("format", 1)) != FORMAT:
        raise CheckpointError(
            f"{folder} has format {number!r}, and this version of Accord reads format {FORMAT}; use the version that "
            "wrote it (`accord` in the run's manifest.json)"
        )
    trees: dict[str, Tree] = {name: {} for name in document["trees"]}
    for full, tensor in load_file(folder / TENSORS).items():
        tree, name = full.split("\t", 1)
        trees[tree][name] = tensor
    return trees, document["facts"]


def rounds(parent: Path) -> list[int]:
    """Return the rounds saved under `parent` (in folders such as 00007), ascending, without incomplete ones."""
    if not parent.is_dir():
        return []
    return sorted(int(p.name) for p in parent.iterdir() if p.name.isdigit() and (p / FACTS).is_file())


def round_folder(parent: Path, rnd: int) -> Path:
    return parent / f"{rnd:05d}"


def prune(parent: Path, keep: set[int]) -> None:
    """Delete the saved rounds that are not in `keep`, and remains of crashes."""
    for path in list(parent.iterdir()) if parent.is_dir() else []:
        if path.name.startswith(".") or (path.name.isdigit() and int(path.name) not in keep):
            shutil.rmtree(path, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace a small file atomically."""
    with writing(path):
        atomic.write(path, text)


def append(path: Path, line: str) -> None:
    """Append a line to a file and flush it to disk."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def lines(path: Path) -> list[Json]:
    """Return the JSON lines of a file written by append(); an incomplete last line is removed from the file."""
    if not path.is_file():
        return []
    whole = path.read_bytes()
    end = whole.rfind(b"\n") + 1
    if end < len(whole):
        with writing(path):
            os.truncate(path, end)
    return [json.loads(line) for line in whole[:end].splitlines()]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the disk into a one-line CheckpointError that names `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise CheckpointError(f"cannot write {path}: {reason}; free space or repair the disk") from error
