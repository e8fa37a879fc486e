"""A folder on disk, whole or absent: written beside its place, flushed, then renamed."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from core.tree import Tree
from core.types import Json

TENSORS, FACTS = "tensors.safetensors", "facts.json"


def save(folder: Path, trees: Mapping[str, Mapping[str, Tensor]], facts: Json) -> None:
    """Write named trees and facts to `folder`, replacing what stood there; a crash leaves the old or the new."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.part-", dir=folder.parent))
    try:
        flat = {
            f"{tree}\t{name}": t.contiguous() for tree, named in trees.items() for name, t in named.items()
        }
        save_file(flat, part / TENSORS)
        (part / FACTS).write_text(json.dumps({"trees": sorted(trees), "facts": facts}, sort_keys=True))
        for file in (part / TENSORS, part / FACTS, part):
            _flush(file)
        if folder.exists():
            old = part.with_name(part.name + ".old")
            folder.rename(old)
            part.rename(folder)
            shutil.rmtree(old)
        else:
            part.rename(folder)
        _flush(folder.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def load(folder: Path) -> tuple[dict[str, Tree], Json]:
    """What `save` wrote; FileNotFoundError if it is absent."""
    document = json.loads((folder / FACTS).read_text())
    trees: dict[str, Tree] = {name: {} for name in document["trees"]}
    for full, tensor in load_file(folder / TENSORS).items():
        tree, name = full.split("\t", 1)
        trees[tree][name] = tensor
    return trees, document["facts"]


def rounds(parent: Path) -> list[int]:
    """The rounds saved under `parent` as folders 00007, ascending; parts of a crash are not counted."""
    if not parent.is_dir():
        return []
    return sorted(int(p.name) for p in parent.iterdir() if p.name.isdigit() and (p / FACTS).is_file())


def round_folder(parent: Path, rnd: int) -> Path:
    return parent / f"{rnd:05d}"


def prune(parent: Path, keep: set[int]) -> None:
    """Delete the saved rounds that are not in `keep`, and what crashes left behind."""
    for path in list(parent.iterdir()) if parent.is_dir() else []:
        if path.name.startswith(".") or (path.name.isdigit() and int(path.name) not in keep):
            shutil.rmtree(path, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace a small file in one step."""
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    _flush(part)
    part.replace(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
