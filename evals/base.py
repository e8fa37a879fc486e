"""Benchmark: contract of the plugins that evaluate one model on the server."""

from collections.abc import Sequence
from typing import ClassVar, Protocol

from core.types import Metrics


class LanguageModel(Protocol):
    """A model as a benchmark uses it; it applies the model's prompt format itself."""

    def generate(self, prompts: Sequence[str]) -> list[str]:
        """Return the greedy answer to each prompt."""
        ...

    def logprob(self, prompt: str, answers: Sequence[str]) -> list[float]:
        """Return the log-probability of each answer in nats, summed over its tokens."""
        ...


class Benchmark(Protocol):
    """A plugin of evals/: a dataclass whose fields are options of the section `eval`."""

    judge: ClassVar[str] = ""  # the value of rlft.judge by which this benchmark judges the policy

    def check(self) -> None:
        """Raise ConfigError or DataError if its data cannot be used; called before training."""
        ...

    def run(self, model: LanguageModel) -> Metrics:
        """Return the metrics of one model; one without data is absent. Raises DataError for unusable data."""
        ...
