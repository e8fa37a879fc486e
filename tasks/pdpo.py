"""PDPO, personalised DPO: private parts behind a shared adapter, and an explicit reward next to the implicit one.

Only the abstract and captions of FedPDPO were available, so architecture, objectives and order of training are a
reconstruction (docs/personalisation.md lists what the paper states). D_im is the margin of DPO (Rafailov et al. 2023,
Eq. 7, arXiv:2305.18290); D_ex is the difference of the two rewards of the client's private head. Objectives, with s
the sigmoid:
separate: -log s(D_im) - lambda log s(D_ex), two Bradley-Terry likelihoods, combined only to rank answers;
margin: -log s(D_im - kappa clip(D_ex, -3, 3)) - lambda log s(D_ex), without gradient through the first D_ex: the
policy must prefer the chosen answer by a larger margin where the reward is certain;
composed: -log s(D_im + lambda D_ex), one likelihood of the summed reward.
Each can add nll-weight times the negative log-likelihood per token of the chosen answer. A pair with the probability c
that its label is right has the expected loss over its two orders, c L(D_im, D_ex) + (1 - c) L(-D_im, -D_ex), including
the negative log-likelihood of the better answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args

from torch import Tensor
from torch.nn.functional import logsigmoid

from core.errors import ConfigError
from core.factors import is_private
from tasks.base import REWARDS, Batch, Example, LossOutput, Parts, Row, Stage, Task
from tasks.dpo import pairs, reward_metrics
from tasks.tokens.choice import all_certain, certainty, share_right
from tasks.tokens.encode import Encoder

Objective = Literal["separate", "margin", "composed"]
CHOICES = {
    "objective": get_args(Objective),
    "order": ("joint", "alternating"),
    "mix": ("residual", "gate"),
}
PARTS = ("bottleneck", "head", "reward")
MAX_MARGIN = 3.0  # bound of D_ex as a margin


def pdpo_loss(implicit: Tensor, explicit: Tensor, *, objective: str, weight: float, kappa: float) -> Tensor:
    """Loss of each pair, (B,), from D_im (implicit) and D_ex (explicit), both (B,). weight: lambda."""
    if objective == "composed":
        return -logsigmoid(implicit + weight * explicit)
    margin = kappa * explicit.detach().clamp(-MAX_MARGIN, MAX_MARGIN) if objective == "margin" else 0.0
    return -logsigmoid(implicit - margin) - weight * logsigmoid(explicit)


@dataclass(frozen=True)
class PDPO(Task):
    """Personalised DPO on pairs. The private parts named by `parts` never leave a client.

    Rates are multiples of train.learning-rate.
    """

    beta: float = 0.1
    objective: str = "separate"
    explicit_weight: float = 0.3
    kappa: float = 0.3
    nll_weight: float = 0.0
    parts: str = "bottleneck,head,reward"
    mix: str = "residual"
    bottleneck_width: int = 0
    head_rank: int = 16
    order: str = "joint"
    bottleneck_rate: float = 0.3
    head_rate: float = 0.3
    reward_rate: float = 3.0

    metrics: ClassVar[tuple[str, ...]] = (*REWARDS, "explicit/margins", "explicit/accuracies", "nll")
    recommended_options: ClassVar[tuple[str, ...]] = ("beta",)
    columns: ClassVar[tuple[str, ...]] = ("prompt", "chosen", "rejected")
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, values in CHOICES.items():
            if (value := getattr(self, name)) not in values:
                raise ConfigError(f"task.{name} must be one of {' | '.join(values)}, got {value!r}")
        names = self.part_names
        # fewer names than commas allow: a name is empty or repeated
        if not names or not names <= set(PARTS) or len(names) < len(self.parts.split(",")):
            raise ConfigError(f"task.parts must be one or more of {', '.join(PARTS)}, got {self.parts!r}")
        for name, value in (("beta", self.beta), *((f"{p}-rate", self.rate(p)) for p in PARTS)):
            if not value > 0:
                raise ConfigError(f"task.{name} must be above 0, got {value}")
        for name in ("explicit_weight", "kappa", "nll_weight", "bottleneck_width", "head_rank"):
            if not getattr(self, name) >= 0:
                raise ConfigError(
                    f"task.{name.replace('_', '-')} must not be negative, got {getattr(self, name)}"
                )
        self._check_effect()

    def _check_effect(self) -> None:
        """Raises ConfigError for a key that has no effect with the other settings."""
        options = {
            "bottleneck": ("mix", "bottleneck_width", "bottleneck_rate"),
            "head": ("head_rank", "head_rate"),
            "reward": ("objective", "explicit_weight", "kappa", "reward_rate"),
        }
        default = {field.name: field.default for field in fields(self)}
        for part, names in options.items():
            for name in names:
                if part not in self.part_names and getattr(self, name) != default[name]:
                    raise ConfigError(
                        f"task.{name.replace('_', '-')} = {getattr(self, name)!r} has no effect with task.parts = "
                        f"{self.parts!r}; add {part!r}"
                    )
        if self.kappa != default["kappa"] and self.objective != "margin":
            raise ConfigError(
                f"task.kappa = {self.kappa} has no effect with task.objective = {self.objective!r}; it is for 'margin'"
            )

    @property
    def part_names(self) -> set[str]:
        """The private parts that `parts` names: some of PARTS."""
        return {name.strip() for name in self.parts.split(",") if name.strip()}

    @property
    def reward_scale(self) -> float:
        return self.beta

    @property
    def private_parts(self) -> Parts:
        mix: Literal["residual", "gate"] = "gate" if self.mix == "gate" else "residual"
        return Parts(
            bottleneck=mix if "bottleneck" in self.part_names else "",
            width=self.bottleneck_width,
            head="head" in self.part_names,
            rank=self.head_rank,
            reward="reward" in self.part_names,
        )

    def rate(self, part: str) -> float:
        return {"bottleneck": self.bottleneck_rate, "head": self.head_rate, "reward": self.reward_rate}[part]

    def stages(self, steps: int) -> tuple[Stage, ...]:
        """One stage for all tensors or, for alternating, one for the private parts, then one for the adapter.

        Alternating as in FedRep (Collins et al. 2021, arXiv:2102.07078).
        """
        if self.order == "joint":
            return super().stages(steps)
        private_steps = max(1, steps // 2)
        shared_steps = max(1, steps - private_steps)
        return Stage(private_steps, is_private), Stage(shared_steps, lambda name: not is_private(name))

    def examples(self, rows: Sequence[Row], encode: Encoder) -> list[Example]:
        return pairs(rows, encode)

    def loss(self, batch: Batch) -> LossOutput:
        assert batch.ref_logps is not None
        ratios, metrics = (batch.logps - batch.ref_logps).view(-1, 2), reward_metrics(batch, self.beta)
        implicit = self.beta * (ratios[:, 0] - ratios[:, 1])
        explicit = None
        if batch.explicit is not None:
            rewards = batch.explicit.view(-1, 2)
            explicit = rewards[:, 0] - rewards[:, 1]
            metrics["explicit/margins"] = float(explicit.detach().mean())
            if explicit.any():
                metrics["explicit/accuracies"] = share_right(explicit.detach())
        loss = self._expected(
            batch,
            self._losses(implicit, explicit),
            lambda: self._losses(-implicit, None if explicit is None else -explicit),
        )
        if self.nll_weight:
            nlls = -(batch.logps / batch.tokens).view(-1, 2)
            nll = self._expected(batch, nlls[:, 0], lambda: nlls[:, 1])
            loss, metrics["nll"] = loss + self.nll_weight * nll, float(nll.detach())
        return LossOutput(loss, metrics)

    def _losses(self, implicit: Tensor, explicit: Tensor | None) -> Tensor:
        if explicit is None:
            return -logsigmoid(implicit)
        weight, kappa = self.explicit_weight, self.kappa
        return pdpo_loss(implicit, explicit, objective=self.objective, weight=weight, kappa=kappa)

    @staticmethod
    def _expected(batch: Batch, right: Tensor, wrong: Callable[[], Tensor]) -> Tensor:
        """The mean expected loss of pairs, weighted by the certainty of their labels.

        right: losses if the labels are right, (B,). wrong: returns the losses if the other answer is better.
        """
        if all_certain(batch.examples):
            return right.mean()
        c = certainty(batch.examples, 0.0, right)
        return (c * right + (1 - c) * wrong()).mean()


PLUGIN = PDPO
