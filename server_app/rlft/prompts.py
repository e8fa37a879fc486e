"""Public prompts on which RLFT aligns a policy: the data source's own, or a file at the server."""

import json
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError, DataError
from core.files import read_text
from core.sections import RlftConfig
from tasks.data.base import Planted, Source


@dataclass(frozen=True)
class PublicPrompt:
    """A public prompt and the reference answer to it; None stands for the base's greedy answer."""

    prompt: str
    completion: str | None = None


def public_prompts(rlft: RlftConfig, source: Source) -> list[PublicPrompt]:
    """The prompts of the file rlft.prompts, else of the data source, without duplicates.

    Raises:
        ConfigError: The file does not exist, or there is none and the source has no public prompts.
        DataError: The file cannot be read, or has fewer than two different prompts.
    """
    if not rlft.prompts:
        questions = source.questions() if isinstance(source, Planted) else source.prompts()
        prompts = [PublicPrompt(prompt) for prompt in dict.fromkeys(questions)]
        if len(prompts) < 2:
            raise ConfigError("rlft.prompts is empty and this data.source has no public prompts: name a file")
        return prompts
    path = Path(rlft.prompts).expanduser()
    if not path.is_file():
        raise ConfigError(f"rlft.prompts = {rlft.prompts!r}: no such file on the server")
    text = read_text(path, "rlft.prompts")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    parse_line = _parse_row if path.suffix == ".jsonl" else lambda line, where: PublicPrompt(line.strip())
    prompts = [parse_line(line, f"{path.name} line {number}") for number, line in lines]
    prompts = list({prompt.prompt: prompt for prompt in prompts}.values())
    if len(prompts) < 2:
        raise DataError(f"rlft.prompts: {path.name} contains fewer than two different prompts")
    return prompts


def _parse_row(line: str, where: str) -> PublicPrompt:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON") from error
    prompt, completion = (row.get("prompt"), row.get("completion")) if isinstance(row, dict) else (None, None)
    if not isinstance(prompt, str) or not prompt.strip() or not isinstance(completion, str | None):
        raise DataError(
            f"{where}: expected a string `prompt` that is not blank and, optionally, a string `completion`"
        )
    return PublicPrompt(prompt, completion)
