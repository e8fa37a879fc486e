"""PDPO: DPO with parts of the client's own behind a shared adapter, and an explicit reward beside the implicit one.

FedPDPO is known to us by its abstract and captions; the architecture, objectives and order here are a reconstruction
(docs/personalisation.md says what is stated and what is not). D_im is DPO's margin (Rafailov et al. 2023, Eq. 7,
arXiv:2305.18290), D_ex the difference of the two rewards that the client's own head gives.
separate: -log s(D_im) - lambda log s(D_ex), two Bradley-Terry likelihoods, put together only where answers are ranked;
margin: -log s(D_im - kappa clip(D_ex, -3, 3)) - lambda log s(D_ex), no gradient through the first D_ex: the policy has
to win by more where the reward is sure; composed: -log s(D_im + lambda D_ex), one likelihood of the summed reward.
All may add nll-weight times the chosen answer's negative log-likelihood per token. A pair with the probability c that
its label is right has the expected loss over its two orders, c L(D_im, D_ex) + (1 - c) L(-D_im, -D_ex), the likelihood
of the better answer included.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args

from torch import Tensor
from torch.nn.functional import logsigmoid

from core.errors import ConfigError
from core.factors import is_private
from core.types import Metrics
from tasks.base import Batch, Example, Parts, Row, Stage, Task
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
MOST = 3.0  # of D_ex as a margin


def pdpo_loss(implicit: Tensor, explicit: Tensor, *, objective: str, weight: float, kappa: float) -> Tensor:
    """Loss of each pair, (B,), from D_im and D_ex; weight is lambda."""
    if objective == "composed":
        return -logsigmoid(implicit + weight * explicit)
    margin = kappa * explicit.detach().clamp(-MOST, MOST) if objective == "margin" else 0.0
    return -logsigmoid(implicit - margin) - weight * logsigmoid(explicit)


@dataclass(frozen=True)
class PDPO(Task):
    """Pairs, as for dpo; what `parts` names is the client's own and never leaves it. Rates multiply
    train.learning-rate."""

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

    columns: ClassVar[tuple[str, ...]] = ("prompt", "chosen", "rejected")
    needs_reference: ClassVar[bool] = True
    averages: ClassVar[Literal["examples", "tokens"]] = "examples"
    reads: ClassVar[Literal["logps", "choices"]] = "logps"

    def __post_init__(self) -> None:
        for name, values in CHOICES.items():
            if (got := getattr(self, name)) not in values:
                raise ConfigError(f"task.{name} must be one of {' | '.join(values)}, got {got!r}")
        if not self.named or not self.named <= set(PARTS) or len(self.named) < len(self.parts.split(",")):
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
        """A key that would do nothing is refused."""
        needs = {
            "bottleneck": ("mix", "bottleneck_width", "bottleneck_rate"),
            "head": ("head_rank", "head_rate"),
            "reward": ("objective", "explicit_weight", "kappa", "reward_rate"),
        }
        default = {field.name: field.default for field in fields(self)}
        for part, names in needs.items():
            for name in names:
                if part not in self.named and getattr(self, name) != default[name]:
                    raise ConfigError(
                        f"task.{name.replace('_', '-')} = {getattr(self, name)!r} has no effect with task.parts = "
                        f"{self.parts!r}; add {part!r}"
                    )
        if self.kappa != default["kappa"] and self.objective != "margin":
            raise ConfigError(
                f"task.kappa = {self.kappa} has no effect with task.objective = {self.objective!r}; it is for 'margin'"
            )

    @property
    def named(self) -> set[str]:
        return {name.strip() for name in self.parts.split(",") if name.strip()}

    @property
    def reward_scale(self) -> float:
        return self.beta

    @property
    def private_parts(self) -> Parts:
        mix: Literal["residual", "gate"] = "gate" if self.mix == "gate" else "residual"
        return Parts(
            bottleneck=mix if "bottleneck" in self.named else "",
            width=self.bottleneck_width,
            head="head" in self.named,
            rank=self.head_rank,
            reward="reward" in self.named,
        )

    def rate(self, part: str) -> float:
        return {"bottleneck": self.bottleneck_rate, "head": self.head_rate, "reward": self.reward_rate}[part]

    def stages(self, steps: int) -> tuple[Stage, ...]:
        """alternating (FedRep, Collins et al. 2021, arXiv:2102.07078): the client's own half, then the shared one."""
        if self.order == "joint":
            return super().stages(steps)
        own = max(1, steps // 2)
        return Stage(own, is_private), Stage(max(1, steps - own), lambda name: not is_private(name))

    def examples(self, rows: Sequence[Row], encode: Encoder) -> list[Example]:
        return pairs(rows, encode)

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
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
            each = -(batch.logps / batch.tokens).view(-1, 2)
            nll = self._expected(batch, each[:, 0], lambda: each[:, 1])
            loss, metrics["nll"] = loss + self.nll_weight * nll, float(nll.detach())
        return loss, metrics

    def _losses(self, implicit: Tensor, explicit: Tensor | None) -> Tensor:
        if explicit is None:
            return -logsigmoid(implicit)
        weight, kappa = self.explicit_weight, self.kappa
        return pdpo_loss(implicit, explicit, objective=self.objective, weight=weight, kappa=kappa)

    @staticmethod
    def _expected(batch: Batch, right: Tensor, wrong: Callable[[], Tensor]) -> Tensor:
        """The mean over pairs, each by how certain its label is; wrong: the losses if the other answer is better."""
        if all_certain(batch.examples):
            return right.mean()
        c = certainty(batch.examples, 0.0, right)
        return (c * right + (1 - c) * wrong()).mean()


PLUGIN = PDPO
