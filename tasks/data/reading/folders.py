"""Which files of a folder are a client's rows, and which are not read."""

from collections.abc import Iterable
from pathlib import Path

from core.errors import ConfigError

ENDINGS = (".jsonl", ".jsonl.gz")
WANTED = " or ".join(ENDINGS)
MOST = 5  # names in a message


def stem(file: Path) -> str:
    """The client of a file: its name without the ending."""
    name = file.name
    return next((name[: -len(ending)] for ending in ENDINGS if name.lower().endswith(ending)), name)


def client_files(folder: Path) -> list[Path]:
    """The files of a folder that hold a client's rows, by name: those with one of ENDINGS that are not hidden.

    Raises ConfigError where there is none, or where one is no file or says the same as another.
    """
    try:
        here = sorted(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error.strerror}", names=[str(folder)]) from None
    files = [path for path in here if is_named_as_rows(path)]
    if not files:
        raise ConfigError(_nothing(folder, here), names=[str(folder)])
    for path in files:
        _check_file(path)
    seen: dict[str, Path] = {}
    for path in files:
        other = seen.setdefault(stem(path), path)
        if other is not path:
            raise ConfigError(
                f"{folder} has {other.name} and {path.name}, which are both client {stem(path)}: keep one of them",
                names=[str(folder), other.name, path.name, stem(path)],
            )
    return files


def one_file(path: Path) -> Path:
    """A file that a path names. Raises ConfigError where it leads to none."""
    _check_file(path)
    return path


def unread(folder: Path) -> tuple[str, ...]:
    """What else is in a folder, hidden files left out; a folder ends in a slash."""
    others = (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
    return tuple(
        f"{path.name}/" if path.is_dir() else path.name for path in others if not is_named_as_rows(path)
    )


def is_named_as_rows(path: Path) -> bool:
    """Hidden files are nobody's: macOS leaves ._north.jsonl beside north.jsonl."""
    return path.name.lower().endswith(ENDINGS) and not path.name.startswith(".")


def _check_file(path: Path) -> None:
    if path.is_file():
        return
    if path.is_symlink() and not path.exists():
        why = "is a link to a file that is not there"
    elif not path.exists():
        why = "does not exist"
    else:
        why = "is a folder, not a file" if path.is_dir() else "is no regular file"
    raise ConfigError(
        f"no {WANTED} file at {path} (data.path, or data-path of a node): it {why}",
        names=[str(path), path.name],
    )


def _nothing(folder: Path, here: Iterable[Path]) -> str:
    """Why a folder has no rows, and where they may be."""
    seen = [path for path in here if not path.name.startswith(".")]
    message = f"no {WANTED} file at {folder} (data.path, or data-path of a node)"
    if not seen:
        return f"{message}: the folder is empty"
    inside = [p.name for p in seen if p.is_dir() and any(is_named_as_rows(file) for file in p.iterdir())]
    if inside:
        return f"{message}; its folder {inside[0]} holds some: name {folder / inside[0]}"
    names = [f"{path.name}/" if path.is_dir() else path.name for path in seen]
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return (
        f"{message}: it holds {', '.join(names[:MOST])}{more}; write rows as one JSON object per line into a file "
        f"NAME{ENDINGS[0]} for each client"
    )
