"""Find the weight files of a model folder and check, before loading, that they are complete.

The choice is that of transformers: `model.safetensors`, else the shards of `model.safetensors.index.json`, else a
pickled checkpoint, which tasks/pretrained/convert.py converts to safetensors. Does not import torch.
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError, safe_open

from core.errors import ConfigError
from core.types import Json

CONFIG = "config.json"
GENERATION = "generation_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
LFS = b"version https://git-lfs"  # start of the pointer that Git LFS leaves in place of a file
Read = Callable[[str], bytes]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightFiles:
    """The names of the weight files that transformers would load."""

    files: tuple[str, ...]
    index: str = ""  # the name of their index; "" for a single file
    places: Mapping[str, str] | None = None  # from the index: tensor to file

    @property
    def pickled(self) -> bool:
        return any(not name.endswith(".safetensors") for name in self.files)


@dataclass(frozen=True)
class Weights:
    """Checked safetensors files, in order of their names: those that are loaded and covered by the fingerprint."""

    folder: Path  # with config.json
    files: tuple[Path, ...]

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """A temporary folder with the configuration and these files only, for from_pretrained().

        In the model's own folder, from_pretrained() would also load an adapter or a distributed checkpoint.
        """
        with tempfile.TemporaryDirectory(prefix="accord-model-") as name:
            view = Path(name)
            config = read_config(self.folder)
            config.pop("transformers_weights", None)
            (view / CONFIG).write_text(json.dumps(config))
            if (self.folder / GENERATION).is_file():
                (view / GENERATION).symlink_to((self.folder / GENERATION).resolve())
            if len(self.files) == 1:
                (view / SINGLE).symlink_to(self.files[0].resolve())
            else:
                for file in self.files:
                    (view / file.name).symlink_to(file.resolve())
                places = {name: file.name for file in self.files for name in tensor_names(file)}
                (view / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
            yield view


def choose(names: Collection[str], read: Read, where: str) -> WeightFiles:
    """Choose the weight files among the files `names` of a repository or folder.

    read: returns the content of a small file. where: the folder or repository, for messages.
    Raises ConfigError if there are none, or if an index is unusable.
    """
    configured = parse_json(read(CONFIG), f"{where}/{CONFIG}").get("transformers_weights")
    if configured and (
        configured not in names or not str(configured).endswith((".safetensors", ".safetensors.index.json"))
    ):
        raise ConfigError(
            f"{where}/{CONFIG}: transformers_weights = {str(configured)[:80]!r}; expected the name of a .safetensors "
            "file or of an index of such files, in the same folder"
        )
    order = [str(configured)] if configured else [SINGLE, INDEX, PICKLED, PICKLED_INDEX]
    name = next((name for name in order if name in names), "")
    if not name:
        raise ConfigError(f"{where} holds no weights: expected {SINGLE} or {INDEX}{_hint(names)}")
    return _read_index(name, read, where) if name.endswith(".index.json") else WeightFiles((name,))


def check(folder: Path, stored: WeightFiles) -> None:
    """Raises ConfigError for a file that is missing, empty, cut short, or a Git LFS pointer."""
    for name in stored.files:
        path = folder / name
        if not path.is_file():
            source = f", which {stored.index} names" if stored.index else ""
            raise ConfigError(f"{folder} lacks {name}{source}; copy or download it again")
        check_whole(path)
        if path.suffix != ".safetensors":
            continue
        present = set(tensor_names(path))
        missing = [n for n, file in (stored.places or {}).items() if file == name and n not in present]
        if missing:
            raise ConfigError(
                f"{folder / name} lacks {counted_names(missing)} that {stored.index} places there; copy both again"
            )


def check_whole(path: Path) -> None:
    """Raises ConfigError for an empty file and for a Git LFS pointer."""
    with path.open("rb") as file:
        head = file.read(len(LFS))
    if not head:
        raise ConfigError(f"{path} is empty; copy or download it again")
    if head == LFS:
        raise ConfigError(
            f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository, or download the "
            "model with `hf download`"
        )


def tensor_names(path: Path) -> list[str]:
    """The names of the tensors in a safetensors file. Raises ConfigError for a damaged header or a truncated file."""
    try:
        with safe_open(path, "np") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ConfigError(
            f"{path} ({path.stat().st_size} bytes) is damaged or cut short: {_line(error)}; copy or download it again"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or _line(error)}") from error


def read_config(folder: Path) -> dict[str, Json]:
    """config.json of a model folder. Raises ConfigError unless it is a JSON object."""
    path = folder / CONFIG
    check_whole(path)
    return parse_json(path.read_bytes(), str(path))


def parse_json(content: bytes, where: str) -> dict[str, Json]:
    """The JSON object in the content of the file `where`. Raises ConfigError unless it is one."""
    try:
        page = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON ({_line(error)}); copy or download it again") from error
    if not isinstance(page, dict):
        raise ConfigError(f"{where} must hold a JSON object, got a {type(page).__name__}")
    return page


def local_names(folder: Path) -> list[str]:
    """The files of a folder and of its additional_chat_templates, without broken links, which a cache may hold."""
    try:
        files = [entry.name for entry in os.scandir(folder) if entry.is_file()]
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error.strerror}") from error
    templates = [
        f"additional_chat_templates/{p.name}" for p in folder.glob("additional_chat_templates/*.jinja")
    ]
    return sorted(files + templates)


def counted_names(names: Collection[str]) -> str:
    """A count with examples, such as '3 tensors (a, b, ...)'."""
    examples = ", ".join(sorted(names)[:2])
    return (
        f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({examples}{', ...' if len(names) > 2 else ''})"
    )


def _read_index(index: str, read: Read, where: str) -> WeightFiles:
    """The shards that an index names. Raises ConfigError for an unusable index and for files in other folders."""
    places = parse_json(read(index), f"{where}/{index}").get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(f, str) for f in places.values()):
        raise ConfigError(
            f"{where}/{index} has no weight_map from tensors to files; copy or download it again"
        )
    ending = ".safetensors" if index.endswith(".safetensors.index.json") else ".bin"
    for file in places.values():
        if PurePosixPath(file).name != file or not file.endswith(ending):
            raise ConfigError(
                f"{where}/{index} names {file[:80]!r}; expected names of {ending} files in the same folder"
            )
    return WeightFiles(tuple(sorted(set(places.values()))), index, places)


def _hint(names: Collection[str]) -> str:
    """What a folder without weights for transformers holds instead, and what to do."""
    if any(name.lower().endswith(".gguf") for name in names):
        return "; it holds GGUF files, which cannot be trained: name the repository that they were made from"
    if any(name.startswith(("consolidated.", "params.json")) for name in names):
        return (
            "; it holds a checkpoint in its maker's own format: name the repository in transformers' format"
        )
    if variants := [n for n in names if n.startswith("model.") and n.endswith(".safetensors")]:
        return f"; it holds {sorted(variants)[0]}: rename that to {SINGLE}, or add the shards' index"
    if any(name.endswith((".h5", ".msgpack", ".onnx", ".ckpt")) for name in names):
        return "; it holds weights for another framework: name a repository with safetensors"
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        return f" (or {PICKLED}); it holds weights under other names: save the model with save_pretrained()"
    return "; copy or download them"


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
