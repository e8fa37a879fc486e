"""A selector, which reads two answers to a prompt and picks one with a single letter.

Wu et al. 2024, FedBis and FedBiscuit (arXiv:2407.03038): the cross-entropy over the logits of A and B at the last
position of a comparison.
Deviations: training, evaluation and labels always use both orders of a pair, so that a bias for a position can be
measured (`order_consistency`) and cancels; long pairs keep both answers; labels may be soft, and an optional penalty
favours antisymmetry.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from core.errors import ConfigError
from tasks.base import Batch, Example, LossOutput, Row, Task
from tasks.tokens.choice import (
    COMPARE,
    ChoiceEncoder,
    certainty,
    check_smoothing,
    cross_entropy,
    margins,
    order_metrics,
)
from tasks.tokens.encode import Encoder


def selector_loss(z: Tensor, p: Tensor, *, antisymmetry: float = 0.0) -> Tensor:
    """Loss of each pair, (B,): the mean cross-entropy of its two orders + antisymmetry (z(y0, y1) + z(y1, y0))^2.

    z: logit of A minus logit of B, with the first answer as A and with the second answer as A, (B, 2).
    p: the probability that the first answer is better, (B,).
    """
    losses = (cross_entropy(z[:, 0], p) + cross_entropy(z[:, 1], 1 - p)) / 2
    return losses + antisymmetry * z.sum(1) ** 2 if antisymmetry else losses


@dataclass(frozen=True)
class Selector(Task):
    """Training of a selector on pairs, which may have a `label_confidence`."""

    label_smoothing: float = 0.0
    antisymmetry: float = 0.0

    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "accuracy/single_order", "order_consistency")
    shared_keys: ClassVar[tuple[str, ...]] = ()  # it has its own prompts
    columns: ClassVar[tuple[str, ...]] = ("prompt", "chosen", "rejected")
    needs_reference: ClassVar[bool] = False
    reads: ClassVar[Literal["logps", "choices"]] = "choices"

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        if not self.antisymmetry >= 0:
            raise ConfigError(f"task.antisymmetry must not be negative, got {self.antisymmetry}")

    @property
    def reward_scale(self) -> float:
        return 0.5

    def examples(self, rows: Sequence[Row], encode: Encoder) -> list[Example]:
        return ChoiceEncoder(encode, COMPARE).examples(rows)

    def loss(self, batch: Batch) -> LossOutput:
        z = margins(batch)
        p = certainty(batch.examples, self.label_smoothing, z)
        return LossOutput(selector_loss(z, p, antisymmetry=self.antisymmetry).mean(), order_metrics(z))


PLUGIN = Selector
