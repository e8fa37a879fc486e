"""An exception that nobody foresaw, told without its text: that may quote a row."""

import logging
import traceback
from pathlib import Path

from core.framing import Failure

log = logging.getLogger(__name__)


def unexpected(error: Exception, what: str) -> Failure:
    """What the server is told: where it happened; the log says by which way."""
    log.error("%s: %s at\n%s", what, type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    return Failure(type(error).__name__, f"unexpected, at {place}; the client's log says more")
