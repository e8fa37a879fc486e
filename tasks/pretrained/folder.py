"""Resolve model.name to a local folder, and explain folders that hold no model."""

import json
import os
from pathlib import Path

from core.errors import ConfigError
from tasks.pretrained.weights import CONFIG

ADAPTER = "adapter_config.json"
EXPECTED = "expected the folder of a Hugging Face model: config.json, tokenizer and safetensors"
MAX_NAMES = 3  # in a message


def local_folder(name: str) -> Path | None:
    """The existing folder that model.name refers to, with ~ expanded; None if the name must be an id on the Hub.

    Raises ConfigError for a path that does not exist, for a file, and for a folder without a model.
    """
    path = Path(name).expanduser()
    try:
        exists = bool(name) and "\0" not in name and path.exists()
    except OSError as error:
        raise ConfigError(f"model.name = {name!r} cannot be read: {error.strerror}") from error
    if not exists:
        if not name.strip() or "\0" in name or is_path(name):
            raise ConfigError(f"model.name = {name!r}: there is no such folder in {Path.cwd()}; {EXPECTED}")
        return None
    if not path.is_dir():
        raise ConfigError(f"model.name = {name!r} is a file; {_file_hint(path)}")
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise ConfigError(f"model.name = {name!r} cannot be read: {error.strerror}") from error
    if not (path / CONFIG).is_file():
        precedence = (
            "" if is_path(name) else " (a local folder takes precedence over a Hub repository of that name)"
        )
        raise ConfigError(
            f"model.name = {name!r} holds no {CONFIG}; {without_config(names, path)}{precedence}"
        )
    return path.resolve()


def without_config(names: list[str], folder: Path | None = None, base: str = "") -> str:
    """What a folder or repository without config.json is, and what to do. base: the base model of an adapter."""
    if ADAPTER in names:
        base = base or (base_of(folder / ADAPTER) if folder else "")
        of = f" of {base!r}" if base else ""
        return (
            f"it is an adapter{of}, not a whole model: set model.name to the model that it belongs to, or merge the "
            "two with peft (PeftModel.from_pretrained(...).merge_and_unload().save_pretrained(FOLDER))"
        )
    if any(name.lower().endswith(".gguf") for name in names):
        return "it holds GGUF files, which cannot be trained: name the model that they were made from"
    if folder and (below := _models_below(folder)):
        more = f" and {len(below) - MAX_NAMES} more" if len(below) > MAX_NAMES else ""
        return f"it holds models in subfolders; set model.name to {', '.join(below[:MAX_NAMES])}{more}"
    if not names:
        return f"it is empty; {EXPECTED}"
    if "params.json" in names or any(name.startswith("consolidated.") for name in names):
        return "it is a checkpoint in its maker's own format: name the model in transformers' format"
    return f"it holds {', '.join(names[:MAX_NAMES])}{', ...' if len(names) > MAX_NAMES else ''}; {EXPECTED}"


def base_of(adapter_config: Path) -> str:
    """The base model that an adapter_config.json names; "" if it names none or cannot be read."""
    try:
        page = json.loads(adapter_config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(page.get("base_model_name_or_path") or "")[:200] if isinstance(page, dict) else ""


def is_path(name: str) -> bool:
    """Whether a name that does not exist looks like a path: an id on the Hub is NAME or NAMESPACE/NAME."""
    return name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1 or "\\" in name


def _file_hint(path: Path) -> str:
    if path.suffix.lower() == ".gguf":
        return "a GGUF file cannot be trained: name the model that it was made from"
    if (path.parent / CONFIG).is_file():
        return f"name the folder that holds it, {str(path.parent)!r}"
    return EXPECTED


def _models_below(folder: Path) -> list[str]:
    """Folders with a config.json, at most two levels down (`snapshots/COMMIT` of a cache), newest first."""
    models = [
        p.parent for pattern in (f"*/{CONFIG}", f"*/*/{CONFIG}") for p in folder.glob(pattern) if p.is_file()
    ]
    return [str(p) for p in sorted(models, key=lambda p: (-p.stat().st_mtime, str(p)))]
