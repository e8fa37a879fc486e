"""A Bradley-Terry reward model, which scores one answer at a time: -log sigmoid(r(x, y_w) - r(x, y_l)).

Bradley and Terry 1952; Stiennon et al. 2020, Eq. 1 (arXiv:2009.01325).
Deviations: there is no new head. r is the logit of A minus that of B after a prompt that asks whether an answer is
good, so that the LoRA adapter is all that is trained and aggregated. Scores are transitive, and n answers need n
scores, where a selector needs a comparison for each pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from tasks.base import Batch, Example, LossOutput, Row, Task
from tasks.tokens.choice import (
    RATE,
    ChoiceEncoder,
    certainty,
    check_smoothing,
    cross_entropy,
    margins,
    share_right,
)
from tasks.tokens.encode import Encoder


@dataclass(frozen=True)
class Reward(Task):
    """Training of a reward model on pairs, which may have a `label_confidence`."""

    label_smoothing: float = 0.0

    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "rewards/margins")
    shared_keys: ClassVar[tuple[str, ...]] = ()  # it has its own prompts
    columns: ClassVar[tuple[str, ...]] = ("prompt", "chosen", "rejected")
    needs_reference: ClassVar[bool] = False
    reads: ClassVar[Literal["logps", "choices"]] = "choices"
    rates_answers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)

    @property
    def reward_scale(self) -> float:
        return 1.0

    def examples(self, rows: Sequence[Row], encode: Encoder) -> list[Example]:
        return ChoiceEncoder(encode, RATE).examples(rows)

    def loss(self, batch: Batch) -> LossOutput:
        rewards = margins(batch)
        gaps = rewards[:, 0] - rewards[:, 1]
        losses = cross_entropy(gaps, certainty(batch.examples, self.label_smoothing, gaps))
        metrics = {"accuracy": share_right(gaps), "rewards/margins": float(gaps.detach().mean())}
        return LossOutput(losses.mean(), metrics)


PLUGIN = Reward
