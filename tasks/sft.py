"""SFT, supervised fine-tuning: mean negative log-likelihood of completion tokens, as TRL's completion-only loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from core.types import Scalar
from tasks.base import Batch, Example, LossOutput, Row, Task, TrlTraining
from tasks.tokens.encode import Encoder

IGNORED = -100  # label that torch's cross-entropy ignores


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

    def loss(self, batch: Batch) -> LossOutput:
        loss = sft_loss(batch.logps, batch.tokens)
        if batch.hits is None:
            return LossOutput(loss, {})
        return LossOutput(loss, {"mean_token_accuracy": float(batch.hits.sum() / batch.tokens.sum())})

    def trl(self, options: Mapping[str, Scalar], batch_size: int) -> TrlTraining:
        return TrlTraining("sft", trl_columns)


def trl_columns(rows: Sequence[Example]) -> dict[str, list[Any]]:  # Any: token ids
    """The columns of TRL's SFTTrainer; only the completion has labels."""
    return {
        "input_ids": [[*e.prompt, *e.completions[0]] for e in rows],
        "labels": [[*[IGNORED] * len(e.prompt), *e.completions[0]] for e in rows],
    }


PLUGIN = SFT
