"""Report an unexpected exception without its message, which may quote a row."""

import logging
import traceback
from pathlib import Path

from core.framing import Failure

log = logging.getLogger(__name__)


def unexpected_failure(error: Exception, request: str) -> Failure:
    """Log the stack trace of `error` and return a failure that names only its type, file and line.

    request: how the log names the message that was being answered.
    """
    log.error(
        "%s: %s at\n%s", request, type(error).__name__, "".join(traceback.format_tb(error.__traceback__))
    )
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    return Failure(type(error).__name__, f"unexpected error at {place}; see the client's log")
