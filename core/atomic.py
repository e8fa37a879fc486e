"""Write files and folders atomically: under a temporary name in the same folder, flushed to disk, then renamed.

A reader sees the previous content or the new one, never a part. Several writers of one target all succeed, and the
target is the whole of what one of them wrote. A temporary name, .NAME.part-..., is used once only, so that what a
killed process left does no harm. This module does not import torch, because a SuperNode's supervisor uses it.
"""

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path


def write(path: Path, content: str | bytes, mode: int | None = None) -> None:
    """Write a file, replacing its content.

    mode: the permission bits, which the file has from the start; None: those of any new file, by the umask.

    Raises OSError, with the name of the file, if the disk fails; the previous content then remains.
    """

    def create(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_EXCL, 0o666 if mode is None else mode)

    part = path.with_name(f".{path.name}.part-{secrets.token_hex(8)}")
    try:
        with _naming(path):
            with open(part, "wb", opener=create) as file:
                if mode is not None:
                    os.fchmod(file.fileno(), mode)  # the umask may have removed some bits
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            flush(path.parent)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


@contextmanager
def folder(path: Path, *, mode: int = 0o700, replace: bool = True) -> Iterator[Path]:
    """Yield an empty folder to fill; at the end it is renamed to `path`, or removed after an exception.

    mode: its permission bits. replace: whether it takes the place of an existing folder, which otherwise stays.

    Raises OSError, with the name of the folder, if the disk fails.
    """
    with _naming(path):
        part = Path(tempfile.mkdtemp(prefix=f".{path.name}.part-", dir=path.parent))
    try:
        with _naming(path):
            yield part
            for file in sorted(part.rglob("*")):
                flush(file)
            part.chmod(mode)
            flush(part)
            _put(part, path, replace=replace)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _put(part: Path, path: Path, *, replace: bool) -> None:
    """Rename `part` to `path`; what is there is moved away first, because a folder with content cannot be replaced."""
    removed: list[Path] = []
    for number in count():
        try:
            part.rename(path)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if not replace:
            shutil.rmtree(part)
            return
        old = part.with_name(f"{part.name}.old{number}")
        with suppress(FileNotFoundError):  # another writer has moved it away
            path.rename(old)
            removed.append(old)
    flush(path.parent)
    for old in removed:
        shutil.rmtree(old)


def flush(path: Path) -> None:
    """Flush a file's content or a folder's entries to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Give errors of the disk the name of the target: that of a temporary file says nothing, and some have none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
