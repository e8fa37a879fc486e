"""Convert pickled checkpoints (pytorch_model.bin) to safetensors, once per content, without running code in them."""

import fcntl
import hashlib
import json
import logging
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from core import atomic, store
from core.errors import ConfigError
from tasks.pretrained.snapshot import check_folder
from tasks.pretrained.weights import WeightFiles, Weights

CHUNK = 1 << 20  # bytes
COMPLETE = "DONE"  # the name of the file that marks a complete conversion
# What torch.load raises for a pickle that holds more than tensors, and for bytes that are not a pickle.
UNREADABLE = (
    pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError,
    AttributeError, TypeError, AssertionError,
)  # fmt: skip

log = logging.getLogger(__name__)


def weights_of(folder: Path) -> Weights:
    """The checked safetensors files of a model folder, after conversion if its weights are pickled.

    Raises ConfigError for a folder whose weights cannot be loaded.
    """
    stored = check_folder(folder)
    names = _converted(folder, stored) if stored.pickled else [folder / name for name in stored.files]
    return Weights(folder, tuple(sorted(names)))


def home() -> Path:
    return Path(os.environ.get("ACCORD_HOME") or Path.home() / ".accord").expanduser()


def stamp(files: Sequence[Path]) -> str:
    """A digest of the state of files: paths, sizes, modification times and change times.

    The change time (ctime) cannot be set by a user, so a replaced file is noticed even with equal size and mtime.
    """
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns, f.stat().st_ctime_ns) for f in files]
    return hashlib.blake2b(json.dumps(stats).encode(), digest_size=16).hexdigest()


def _converted(folder: Path, stored: WeightFiles) -> list[Path]:
    """The safetensors files of pickled files, converted under $ACCORD_HOME by content, by one process at a time."""
    sources = [folder / name for name in stored.files]
    # maps the state of the files to the digest of their content, so that unchanged files are not read again
    pointer = home() / "converted" / "by-file" / stamp(sources)
    root = home() / "converted"
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / "lock"):
        if pointer.is_file() and (converted := root / pointer.read_text()).joinpath(COMPLETE).is_file():
            return sorted(converted.glob("*.safetensors"))
        target = root / _digest(sources)
        if not (target / COMPLETE).is_file():
            _convert(sources, target)
        pointer.parent.mkdir(exist_ok=True)
        store.write_text(pointer, target.name)
    return sorted(target.glob("*.safetensors"))


def _convert(sources: list[Path], target: Path) -> None:
    """Write the safetensors files to the folder `target`, which is complete or absent."""
    log.info("converting %s to safetensors in %s", ", ".join(file.name for file in sources), target)
    with store.writing(target), atomic.folder(target) as part:
        for number, source in enumerate(sources, 1):
            name = f"model-{number:05}-of-{len(sources):05}.safetensors"
            save_file(_tensors(source), part / name, metadata={"format": "pt"})
        (part / COMPLETE).touch()


def _tensors(source: Path) -> dict[str, Tensor]:
    """The tensors of a pickled file, copied so that none share memory, which safetensors does not support."""
    advice = "use a repository with safetensors, or save the model with save_pretrained() where it is trusted"
    try:
        page = torch.load(source, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ConfigError(
            f"{source} cannot be read as a table of tensors ({type(error).__name__}): it is damaged, or loading it "
            f"would run code from the file, which Accord never does; {advice}"
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
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, so that one process of this machine converts at a time."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
