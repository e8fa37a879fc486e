"""Pickled checkpoints (pytorch_model.bin) as safetensors: made once, by content, without running what a pickle says."""

import fcntl
import hashlib
import json
import logging
import os
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from core.errors import ConfigError
from tasks.pretrained.snapshot import check_folder
from tasks.pretrained.weights import Stored, Weights

CHUNK = 1 << 20  # bytes
DONE = "DONE"
# What torch.load raises for a pickle that asks for more than tensors, and for bytes that are none.
UNREADABLE = (
    pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError,
    AttributeError, TypeError, AssertionError,
)  # fmt: skip

log = logging.getLogger(__name__)


def weights_of(folder: Path) -> Weights:
    """The checked safetensors files of a model folder; of pickled ones, those that they are converted to.

    Raises ConfigError for a folder whose weights cannot be loaded.
    """
    stored = check_folder(folder)
    names = _converted(folder, stored) if stored.pickled else [folder / name for name in stored.files]
    return Weights(folder, tuple(sorted(names)))


def home() -> Path:
    return Path(os.environ.get("ACCORD_HOME") or Path.home() / ".accord").expanduser()


def stamp(files: Sequence[Path]) -> str:
    """Names a state of files: path, size, and the times of the last writing and of the last change of any kind.

    The latter cannot be set back, so a file that was put in another's place with its size and time is noticed.
    """
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns, f.stat().st_ctime_ns) for f in files]
    return hashlib.blake2b(json.dumps(stats).encode(), digest_size=16).hexdigest()


def _converted(folder: Path, stored: Stored) -> list[Path]:
    """The safetensors of pickled files, under $ACCORD_HOME by their content; several processes make them once."""
    sources = [folder / name for name in stored.files]
    known = home() / "converted" / "by-file" / stamp(sources)
    root = home() / "converted"
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root / "lock"):
        if known.is_file() and (made := root / known.read_text()).joinpath(DONE).is_file():
            return sorted(made.glob("*.safetensors"))
        place = root / _digest(sources)
        if not (place / DONE).is_file():
            _convert(sources, place)
        known.parent.mkdir(exist_ok=True)
        known.write_text(place.name)
    return sorted(place.glob("*.safetensors"))


def _convert(sources: list[Path], place: Path) -> None:
    log.info("converting %s to safetensors in %s", ", ".join(file.name for file in sources), place)
    part = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=place.parent))
    try:
        for number, source in enumerate(sources, 1):
            name = f"model-{number:05}-of-{len(sources):05}.safetensors"
            save_file(_tensors(source), part / name, metadata={"format": "pt"})
        (part / DONE).touch()
        shutil.rmtree(place, ignore_errors=True)
        part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _tensors(source: Path) -> dict[str, Tensor]:
    """The tensors of a pickled file, each with memory of its own: safetensors holds none that share it."""
    advice = "use a repository with safetensors, or save the model with save_pretrained() where it is trusted"
    try:
        page = torch.load(source, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ConfigError(
            f"{source} cannot be read as a table of tensors ({type(error).__name__}): it is damaged, or would run code "
            f"of its own, which Accord never does; {advice}"
        ) from error
    if not isinstance(page, Mapping) or not page:
        raise ConfigError(f"{source} must hold a table of tensors, got a {type(page).__name__}; {advice}")
    for name, tensor in page.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ConfigError(f"{source} holds more than tensors ({type(tensor).__name__}); {advice}")
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in page.items()
    }


def _digest(files: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size} ".encode())
        with file.open("rb") as source:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Inside, no other process of this machine converts."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
