"""Check the files that the configuration names and the server reads, before any model is loaded."""

from pathlib import Path

from core.errors import ConfigError
from core.files import read_text
from core.sections import Config
from server_app.rlft.judging import Judge
from server_app.rlft.prompts import public_prompts


def eval_prompts(config: Config) -> list[str]:
    """The prompts of the file eval.prompts, one per line; [] if the key is empty. Raises ConfigError."""
    if not config.eval.prompts:
        return []
    path = Path(config.eval.prompts).expanduser()
    if not path.is_file():
        raise ConfigError(f"eval.prompts = {config.eval.prompts!r}: no such file on the server")
    prompts = [line for line in read_text(path, "eval.prompts").splitlines() if line.strip()]
    if not prompts:
        raise ConfigError(f"eval.prompts = {config.eval.prompts!r} contains no prompt: expected one per line")
    return prompts


def check_files(config: Config) -> None:
    """Check that benchmark, prompt and judge files exist and can be read. Raises ConfigError and DataError."""
    for choice in config.benchmarks:
        choice.build().check()
    eval_prompts(config)
    if config.rlft.epochs:
        source = config.source_choice.build()
        public_prompts(config.rlft, source)
        judge = Judge.of(config, source)
        if judge.pairs:
            judge.pairs.build().check()
