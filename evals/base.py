"""Benchmark: a model that answers and scores goes in, numbers come out. Nothing here is federated."""

from collections.abc import Sequence
from typing import Protocol

from core.types import Metrics


class Talker(Protocol):
    """A model as a benchmark sees it; prompts are put into the model's own format inside."""

    def generate(self, prompts: Sequence[str]) -> list[str]:
        """The greedy answer to each prompt."""
        ...

    def logprob(self, prompt: str, answers: Sequence[str]) -> list[float]:
        """The log-probability of each answer, summed over its tokens, in nats."""
        ...


class Benchmark(Protocol):
    """A plugin of evals/: a dataclass whose fields are keys of the section `eval`."""

    def check(self) -> None:
        """Raises ConfigError or DataError when its data are not there; called before anything is trained."""
        ...

    def run(self, talker: Talker) -> Metrics:
        """The numbers of one model; a metric without data is absent. Raises DataError for unusable data."""
        ...
