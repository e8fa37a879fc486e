"""The public prompts that RLFT aligns a policy on: the source's own, or a file of the server's."""

import json
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError, DataError
from core.files import read_text
from core.sections import RlftConfig
from tasks.data.base import Planted, Source


@dataclass(frozen=True)
class Asked:
    """A public prompt, and the answer that the policy's answers are compared with; None: the base's own."""

    prompt: str
    completion: str | None = None


def public_prompts(rlft: RlftConfig, source: Source) -> list[Asked]:
    """Raises ConfigError and DataError for a file that cannot be read, and where there is none and no prompts."""
    if not rlft.prompts:
        own = source.questions() if isinstance(source, Planted) else source.prompts()
        found = [Asked(prompt) for prompt in dict.fromkeys(own)]
        if len(found) < 2:
            raise ConfigError("rlft.prompts: this data.source has no public prompts of its own; name a file")
        return found
    path = Path(rlft.prompts).expanduser()
    if not path.is_file():
        raise ConfigError(f"rlft.prompts = {rlft.prompts!r}: no such file on the server")
    text = read_text(path, "rlft.prompts")
    lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    read = _row if path.suffix == ".jsonl" else lambda line, where: Asked(line.strip())
    found = [read(line, f"{path.name} line {number}") for number, line in lines]
    found = list({asked.prompt: asked for asked in found}.values())
    if len(found) < 2:
        raise DataError(f"{path.name} holds fewer than two different prompts")
    return found


def _row(line: str, where: str) -> Asked:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON") from error
    prompt, completion = (row.get("prompt"), row.get("completion")) if isinstance(row, dict) else (None, None)
    if not isinstance(prompt, str) or not prompt.strip() or not isinstance(completion, str | None):
        raise DataError(f"{where}: expected a text `prompt` and, if anything, a text `completion`")
    return Asked(prompt, completion)
