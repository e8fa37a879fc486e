"""Why Ray did not start, put into a line: Flower shows its traceback, and the reason is often in another log."""

import re
from pathlib import Path

RAY_FAILS = re.compile(r"An exception occurred !!|Unable to initialise|ray\.init|raylet")


def ray_failure(log: Path) -> str:
    return ""
