"""Log lines as JSON, for whoever collects them: one object a line."""

import json
import logging
from datetime import UTC, datetime


def json_line(level: str, logger: str, message: str, **facts: object) -> str:
    """time, level, logger, message, and the facts beside them, which json.dumps takes."""
    when = datetime.now(UTC).isoformat(timespec="milliseconds")
    said = {"time": when, "level": level, "logger": logger, "message": message, **facts}
    return json.dumps(said, ensure_ascii=False)


class JsonLines(logging.Formatter):
    """A line of JSON for each record."""

    def format(self, record: logging.LogRecord) -> str:
        return json_line(record.levelname, record.name, record.getMessage())
