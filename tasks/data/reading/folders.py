"""Find the files of a folder that hold clients' rows, and the files that are not read."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from core.errors import ConfigError

ENDINGS = (".jsonl", ".jsonl.gz")
WANTED = " or ".join(ENDINGS)  # for messages
MAX_NAMES = 5  # in a message


def client_name(file: Path) -> str:
    """The name of a file without its ending, which is the name of its client."""
    name = file.name
    return next((name[: -len(ending)] for ending in ENDINGS if name.lower().endswith(ending)), name)


def client_files(folder: Path) -> list[Path]:
    """The files of a folder that hold a client's rows, in order of name: not hidden, with one of ENDINGS.

    Raises ConfigError if there is none, if one of them is not a regular file, or if two belong to one client.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error.strerror}", names=[str(folder)]) from None
    files = [path for path in paths if is_named_as_rows(path)]
    if not files:
        raise ConfigError(_no_rows_message(folder, paths), names=[str(folder)])
    for path in files:
        _check_file(path)
    by_client: dict[str, Path] = {}
    for path in files:
        client = client_name(path)
        first = by_client.setdefault(client, path)
        if first is not path:
            raise ConfigError(
                f"{folder} has {first.name} and {path.name}, which both belong to client {client}: keep one of them",
                names=[str(folder), first.name, path.name, client],
            )
    return files


def checked_file(path: Path, endings: Sequence[str] = ENDINGS) -> Path:
    """The path itself. Raises ConfigError unless it is a regular file. endings: those that the message names."""
    _check_file(path, endings)
    return path


def unread(folder: Path) -> tuple[str, ...]:
    """The other entries of a folder, except hidden ones; names of folders end in a slash."""
    visible = (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
    return tuple(
        f"{path.name}/" if path.is_dir() else path.name for path in visible if not is_named_as_rows(path)
    )


def is_named_as_rows(path: Path) -> bool:
    """Whether a name has one of ENDINGS and is not hidden, such as the ._north.jsonl that macOS adds to north.jsonl."""
    return path.name.lower().endswith(ENDINGS) and not path.name.startswith(".")


def _check_file(path: Path, endings: Sequence[str] = ENDINGS) -> None:
    if path.is_file():
        return
    if path.is_symlink() and not path.exists():
        problem = "is a link to a file that is not there"
    elif not path.exists():
        problem = "does not exist"
    else:
        problem = "is a folder, not a file" if path.is_dir() else "is not a regular file"
    raise ConfigError(
        f"no {' or '.join(endings)} file at {path} (data.path, or data-path of a node): it {problem}",
        names=[str(path), path.name],
    )


def _no_rows_message(folder: Path, paths: Iterable[Path]) -> str:
    """The error for a folder without files of rows: what it holds instead, and where they may be."""
    visible = [path for path in paths if not path.name.startswith(".")]
    message = f"no {WANTED} file at {folder} (data.path, or data-path of a node)"
    if not visible:
        return f"{message}: the folder is empty"
    below = [p.name for p in visible if p.is_dir() and any(is_named_as_rows(file) for file in p.iterdir())]
    if below:
        return f"{message}; its folder {below[0]} holds some: set the path to {folder / below[0]}"
    names = [f"{path.name}/" if path.is_dir() else path.name for path in visible]
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return (
        f"{message}: it holds {', '.join(names[:MAX_NAMES])}{more}; write rows as one JSON object per line into a "
        f"file NAME{ENDINGS[0]} for each client"
    )
