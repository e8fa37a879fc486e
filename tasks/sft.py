"""SFT, supervised fine-tuning: mean negative log-likelihood of completion tokens, as TRL's completion-only loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from core.types import Metrics
from tasks.base import Batch, Example, Row, Task
from tasks.tokens.encode import Encoder


def sft_loss(logps: Tensor, tokens: Tensor) -> Tensor:
    """Mean negative log-likelihood per token, a scalar.

    logps: log-probability of each completion, (B,). tokens: number of tokens of each, (B,).
    """
    return -logps.sum() / tokens.sum()


@dataclass(frozen=True)
class SFT(Task):
    """Supervised fine-tuning on prompts with completions."""

    metrics: ClassVar[tuple[str, ...]] = ("mean_token_accuracy",)
    shared_keys: ClassVar[tuple[str, ...]] = (*Task.shared_keys, "lora.dropout")
    engines: ClassVar[tuple[str, ...]] = ("accord", "trl")
    columns: ClassVar[tuple[str, ...]] = ("prompt", "completion")
    needs_reference: ClassVar[bool] = False
    averages: ClassVar[Literal["examples", "tokens"]] = "tokens"

    @property
    def reward_scale(self) -> float:
        return 1.0

    def examples(self, rows: Sequence[Row], encode: Encoder) -> list[Example]:
        examples = (encode.example(r["prompt"], (r["completion"],), row=i) for i, r in enumerate(rows))
        return [example for example in examples if example]

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        loss = sft_loss(batch.logps, batch.tokens)
        if batch.hits is None:
            return loss, {}
        return loss, {"mean_token_accuracy": float(batch.hits.sum() / batch.tokens.sum())}


PLUGIN = SFT
