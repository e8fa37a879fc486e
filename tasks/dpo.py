"""DPO, direct preference optimisation on pairs. Rafailov et al. 2023, Eq. 7 (arXiv:2305.18290).

Also IPO (Azar et al. 2023, Eq. 17, arXiv:2310.12036; log-ratios per token, as its authors told TRL), the hinge
of SLiC (Zhao et al. 2023, arXiv:2305.10425) and label smoothing (Mitchell 2023, "conservative DPO"). A pair with the
probability c that its label is right has the expected loss c l(m) + (1 - c) l(-m): conservative DPO with a smoothing
of 1 - c for this pair; for IPO, up to a constant, the squared distance from (2c - 1) / (2 beta).
Deviations: none in the loss. Long pairs are truncated differently from TRL 1.16, which cuts the end of prompt and
answer together and drops a pair whose prompt fills max_length. Here the start of the prompt is cut first, equally for
both answers, and the end of an answer only if it is too long by itself. Of 1000 pairs of HH-RLHF's helpful-base,
tokenised by stories260K, train.max-length = 512 cuts 51 %; 98 % of the answers' tokens are left here and 54 % by TRL,
which drops 31 % of the pairs: python -m benchmarks.truncation helpful-base_train.jsonl.gz --model stories260K
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from core.errors import ConfigError
from core.sections import Config
from core.types import Metrics, Scalar
from tasks.base import REWARDS, Batch, Example, LossOutput, Row, Task, TrlTraining
from tasks.tokens.choice import all_certain, certainty, with_confidence
from tasks.tokens.encode import Encoder

LossType = Literal["sigmoid", "ipo", "hinge"]


def dpo_loss(
    margins: Tensor, *, beta: float, loss_type: str = "sigmoid", label_smoothing: float | Tensor = 0.0
) -> Tensor:
    """Loss of each pair, (B,): (1 - s) l(m) + s l(-m) with s = label_smoothing.

    l(m) is -log sigmoid(beta m) for sigmoid, (m - 1/(2 beta))^2 for ipo and max(0, 1 - beta m) for hinge.

    margins: log pi/pi_ref of chosen minus that of rejected, (B,); for ipo, means over tokens.
    label_smoothing: a number for all pairs, or (B,).
    """
    if isinstance(label_smoothing, float) and not label_smoothing:
        return _loss(margins, beta, loss_type)
    if_right, if_wrong = _loss(margins, beta, loss_type), _loss(-margins, beta, loss_type)
    return (1 - label_smoothing) * if_right + label_smoothing * if_wrong


def _loss(margins: Tensor, beta: float, loss_type: str) -> Tensor:
    if loss_type == "ipo":
        return (margins - 1 / (2 * beta)) ** 2
    if loss_type == "hinge":
        return torch.relu(1 - beta * margins)
    return -logsigmoid(beta * margins)


def pairs(rows: Sequence[Row], encode: Encoder) -> list[Example]:
    """Examples with the completions (chosen, rejected), and with the label_confidence of rows that have one."""
    examples = (encode.example(r["prompt"], (r["chosen"], r["rejected"]), row=i) for i, r in enumerate(rows))
    return [with_confidence(e, r) for e, r in zip(examples, rows, strict=True) if e]


def reward_metrics(batch: Batch, beta: float) -> Metrics:
    """TRL's metrics of a batch of pairs."""
    assert batch.ref_logps is not None
    rewards = beta * (batch.logps - batch.ref_logps).view(-1, 2).detach()
    margins = rewards[:, 0] - rewards[:, 1]
    chosen, rejected = rewards.mean(0).tolist()
    logp_chosen, logp_rejected = batch.logps.view(-1, 2).detach().mean(0).tolist()
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": float(margins.mean()),
        "rewards/accuracies": float((margins > 0).float().mean()),
        "logps/chosen": logp_chosen,
        "logps/rejected": logp_rejected,
    }


@dataclass(frozen=True)
class DPO(Task):
    """Direct preference optimisation on pairs; the reference is the frozen base, in every round."""

    beta: float = 0.1
    loss_type: str = "sigmoid"
    label_smoothing: float = 0.0

    metrics: ClassVar[tuple[str, ...]] = REWARDS
    recommended_options: ClassVar[tuple[str, ...]] = ("beta",)
    engines: ClassVar[tuple[str, ...]] = ("accord", "trl")
    columns: ClassVar[tuple[str, ...]] = ("prompt", "chosen", "rejected")
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ConfigError(f"task.beta must be above 0, got {self.beta}")
        if self.loss_type not in get_args(LossType):
            raise ConfigError(
                f"task.loss-type must be one of {' | '.join(get_args(LossType))}, got {self.loss_type!r}"
            )
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"task.label-smoothing must be in [0, 0.5), got {self.label_smoothing}")
        if self.label_smoothing and self.loss_type != "sigmoid":
            raise ConfigError(
                f"task.label-smoothing is for task.loss-type = 'sigmoid', not {self.loss_type!r}; rows may have a "
                "column label_confidence instead"
            )

    def conflicts(self, config: Config) -> Iterator[str]:
        if config.train.engine == "trl" and self.label_smoothing:
            yield f"task.label-smoothing = {self.label_smoothing} needs train.engine = 'accord'"

    @property
    def reward_scale(self) -> float:
        return self.beta

    def examples(self, rows: Sequence[Row], encode: Encoder) -> list[Example]:
        return pairs(rows, encode)

    def loss(self, batch: Batch) -> LossOutput:
        assert batch.ref_logps is not None
        ratios = (batch.logps - batch.ref_logps).view(-1, 2)
        scores = ratios / batch.tokens.view(-1, 2) if self.loss_type == "ipo" else ratios
        losses = dpo_loss(
            scores[:, 0] - scores[:, 1],
            beta=self.beta,
            loss_type=self.loss_type,
            label_smoothing=self._smoothing(batch.examples, scores),
        )
        return LossOutput(losses.mean(), reward_metrics(batch, self.beta))

    def _smoothing(self, examples: Sequence[Example], like: Tensor) -> float | Tensor:
        """The probability that each label is wrong: 1 - confidence, smoothed; a number if all are certain."""
        if all_certain(examples):
            return self.label_smoothing
        return 1 - certainty(examples, self.label_smoothing, like)

    def trl(self, options: Mapping[str, Scalar], batch_size: int) -> TrlTraining:
        if self.label_smoothing:
            raise ConfigError(
                f"task.label-smoothing = {self.label_smoothing} is not supported by TRL's sigmoid loss; use "
                "train.engine = 'accord'"
            )
        return TrlTraining(
            "dpo",
            trl_columns,
            {"beta": self.beta, "loss_type": [self.loss_type]},
            ("ref_chosen_logps", "ref_rejected_logps"),
        )


def trl_columns(rows: Sequence[Example]) -> dict[str, list[Any]]:  # Any: token ids
    """The columns of TRL's DPOTrainer, without those of the reference."""
    return {
        "prompt_ids": [e.prompt for e in rows],
        "chosen_ids": [e.completions[0] for e in rows],
        "rejected_ids": [e.completions[1] for e in rows],
    }


PLUGIN = DPO
