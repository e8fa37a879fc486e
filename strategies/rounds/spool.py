"""Files for updates that wait on disk, so that memory does not grow with the number of clients."""

import tempfile
from pathlib import Path
from typing import IO

from core import store


def spool_file(folder: Path) -> IO[bytes]:
    """Open a temporary file without a name in `folder`: nothing of it remains when the process ends, however it ends.

    Raises CheckpointError if the disk refuses it.
    """
    with store.writing(folder):
        return tempfile.TemporaryFile(dir=folder)
