"""Log lines as JSON, one object per line, for log collectors."""

import json
import logging
from datetime import UTC, datetime


def json_line(level: str, logger: str, message: str, **facts: object) -> str:
    """Return a line with time, level, logger, message and `facts`, which must be JSON values."""
    when = datetime.now(UTC).isoformat(timespec="milliseconds")
    entry = {"time": when, "level": level, "logger": logger, "message": message, **facts}
    return json.dumps(entry, ensure_ascii=False)


class JsonLines(logging.Formatter):
    """Format each record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        return json_line(record.levelname, record.name, record.getMessage())
