"""The commands of docs/deployment.md, read from the page."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.federation.conftest import ROOT

BLOCK = re.compile(r"^```(sh|toml) (\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GUIDE = ROOT / "docs" / "deployment.md"


@dataclass(frozen=True)
class Step:
    """A block of the guide: a file to write, commands to run, or a service to start and leave running."""

    host: str
    text: str
    file: str = ""
    service: bool = False


def steps() -> Iterator[Step]:
    for language, host, label, text in BLOCK.findall(GUIDE.read_text()):
        if language == "toml":
            yield Step(host, text, file=label)
        else:
            yield Step(host, text.strip(), service=label == "service")
