"""KTO, Kahneman-Tversky optimisation on thumbs up and down. Ethayarajh et al. 2024, Eq. 7 and 8 (arXiv:2402.01306).

The reference point z is the mean log pi/pi_ref of mismatched pairs, at least 0 and without gradient. A thumb with the
probability c that its label is right has the expected loss c L(label) + (1 - c) L(not label), as in conservative DPO
(Mitchell 2023); z does not depend on labels.
Deviations from TRL 1.16: mismatched pairs are fixed per client instead of per batch (`deranged`; TRL's pairing is
`rotated`; both cut the whole completion once, to what fits after the prompt), weights can come from the counts of
all clients, z can start from the server's estimate, and long rows are cut as in tasks/dpo.py.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from core.errors import ConfigError
from core.sections import Config
from core.types import Metrics, OrderOption, Scalar
from tasks.base import REWARDS, Batch, Example, LossOutput, Row, Task, TrlTraining
from tasks.tokens.choice import all_certain, certainty, with_confidence
from tasks.tokens.encode import Encoder

BAND = (1.0, 4 / 3)  # bounds of w_D n_D : w_U n_U, Eq. 8
WINDOW = 32  # decay of the running reference point: a row's weight falls to about 1/e after so many mismatched rows


def kto_loss(
    ratios: Tensor,
    labels: Tensor,
    z: float | Tensor,
    *,
    beta: float,
    desirable: float = 1.0,
    undesirable: float = 1.0,
    confidence: Tensor | None = None,
) -> Tensor:
    """Loss of each row, (B,): w_D (1 - sigmoid(beta (r - z))) or w_U (1 - sigmoid(beta (z - r))).

    ratios: log pi/pi_ref, (B,); labels: True for desirable, (B,); z: the reference point. confidence: the probability
    that each label is right, (B,), for the expected loss.
    """
    if confidence is not None:
        right = kto_loss(ratios, labels, z, beta=beta, desirable=desirable, undesirable=undesirable)
        wrong = kto_loss(ratios, ~labels, z, beta=beta, desirable=desirable, undesirable=undesirable)
        return confidence * right + (1 - confidence) * wrong
    gain = torch.where(labels, ratios - z, z - ratios)
    weight = torch.where(labels, desirable, undesirable)
    return weight * (1 - torch.sigmoid(beta * gain))


def reference_point(kl_ratios: Tensor) -> Tensor:
    """z as in TRL: the mean over M > 0 mismatched pairs, at least 0."""
    return kl_ratios.mean().clamp(min=0)


@dataclass(frozen=True)
class _ReferencePoint:
    """z of a batch, with the state that the next batch continues and the batch's addends to the federation's mean."""

    z: float | None  # None if there is nothing to estimate it from
    running: Mapping[str, float]
    sums: Mapping[str, float]


@dataclass(frozen=True)
class KTO(Task):
    """Kahneman-Tversky optimisation on unpaired completions; the reference is the frozen base, in every round."""

    beta: float = 0.1
    desirable_weight: str = "auto"
    undesirable_weight: str = "auto"
    reference_point: str = "batch"

    order_options: ClassVar[Mapping[str, OrderOption]] = {
        name: OrderOption(float) for name in ("desirable-weight", "undesirable-weight", "z0")
    }
    metrics: ClassVar[tuple[str, ...]] = ("kl", *REWARDS, "sum/kl_sum", "sum/kl_count")
    shared_keys: ClassVar[tuple[str, ...]] = (*Task.shared_keys, "data.allocation")
    recommended_options: ClassVar[tuple[str, ...]] = ("beta",)
    engines: ClassVar[tuple[str, ...]] = ("accord", "trl")
    columns: ClassVar[tuple[str, ...]] = ("prompt", "completion", "label")
    needs_reference: ClassVar[bool] = True
    joins_rows: ClassVar[bool] = True  # by the reference point

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ConfigError(f"task.beta must be above 0, got {self.beta}")
        if self.reference_point not in ("batch", "pooled"):
            raise ConfigError(f"task.reference-point must be batch | pooled, got {self.reference_point!r}")
        for key, text in (("desirable", self.desirable_weight), ("undesirable", self.undesirable_weight)):
            if text != "auto" and not _positive(text):
                raise ConfigError(f"task.{key}-weight must be 'auto' or a number above 0, got {text!r}")

    def conflicts(self, config: Config) -> Iterator[str]:
        if config.train.engine == "trl" and self.reference_point != "batch":
            yield f"task.reference-point = {self.reference_point!r} needs train.engine = 'accord'"

    @property
    def reward_scale(self) -> float:
        return self.beta

    def examples(self, rows: Sequence[Row], encode: Encoder) -> list[Example]:
        examples = (
            encode.example(r["prompt"], (r["completion"],), bool(r["label"]), row=i)
            for i, r in enumerate(rows)
        )
        return [with_confidence(e, r) for e, r in zip(examples, rows, strict=True) if e]

    def prepare(self, examples: Sequence[Example], *, seed: int, max_length: int) -> list[Example]:
        """Every example with a mismatched completion, unless the examples already have them."""
        if any(example.mismatched for example in examples):
            return list(examples)
        return deranged(examples, seed=seed, max_length=max_length)

    def loss(self, batch: Batch) -> LossOutput:
        assert batch.ref_logps is not None
        labels = torch.tensor([bool(e.label) for e in batch.examples], device=batch.logps.device)
        ratios = batch.logps - batch.ref_logps
        point = self._reference_point(batch)
        z = point.z
        losses = kto_loss(
            ratios,
            labels,
            0.0 if z is None else z,
            beta=self.beta,
            desirable=_weight(self.desirable_weight, batch.options, "desirable-weight"),
            undesirable=_weight(self.undesirable_weight, batch.options, "undesirable-weight"),
            confidence=None if all_certain(batch.examples) else certainty(batch.examples, 0.0, ratios),
        )
        metrics: Metrics = {} if z is None else {"kl": z}
        for name, rows in (("chosen", labels), ("rejected", ~labels)):
            if rows.any():
                metrics[f"rewards/{name}"] = float(self.beta * ratios.detach()[rows].mean())
                metrics[f"logps/{name}"] = float(batch.logps.detach()[rows].mean())
        if labels.any() and not labels.all():
            metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        return LossOutput(losses.mean(), metrics, point.running, point.sums)

    def _reference_point(self, batch: Batch) -> _ReferencePoint:
        """The reference point of this batch."""
        z0 = batch.options.get("z0")
        if batch.kl_logps is None or batch.kl_ref_logps is None or not len(batch.kl_logps):
            return _ReferencePoint(None if z0 is None else max(0.0, float(z0)), batch.running, {})
        ratios = batch.kl_logps - batch.kl_ref_logps
        count, total = len(ratios), float(ratios.sum())
        sums = {"kl_sum": total, "kl_count": float(count)}
        if self.reference_point == "batch":
            return _ReferencePoint(float(reference_point(ratios)), batch.running, sums)
        start = {"weight": 0.0, "total": 0.0}
        if z0 is not None:  # start from the server's value, as if it were WINDOW rows
            start = {"weight": WINDOW, "total": WINDOW * float(z0)}
        before = batch.running or start
        fade = (1 - 1 / WINDOW) ** count
        weight, total = before["weight"] * fade + count, before["total"] * fade + total
        return _ReferencePoint(max(0.0, total / weight), {"weight": weight, "total": total}, sums)

    def trl(self, options: Mapping[str, Scalar], batch_size: int) -> TrlTraining:
        remedy = "use train.engine = 'accord'"
        if self.reference_point != "batch":
            raise ConfigError(
                f"task.reference-point = {self.reference_point!r} is not supported by TRL; {remedy}"
            )
        if batch_size < 2:
            raise ConfigError(
                "TRL's kto needs at least two rows in a batch: train.per-device-batch-size is 1, or a client has one "
                f"row; {remedy} with task.reference-point = 'pooled'"
            )
        arguments = {
            "beta": self.beta,
            "desirable_weight": _weight(self.desirable_weight, options, "desirable-weight"),
            "undesirable_weight": _weight(self.undesirable_weight, options, "undesirable-weight"),
        }
        return TrlTraining("kto", trl_columns, arguments, ("ref_logps", "ref_KL_logps"))

    def row_counts(self, examples: Sequence[Example]) -> Metrics:
        """Numbers of desirable and undesirable rows; expected numbers if labels are uncertain."""
        desirable = sum(e.confidence if e.label else 1 - e.confidence for e in examples)
        return {"n_desirable": float(desirable), "n_undesirable": float(len(examples) - desirable)}

    def pooled_options(self, pooled: Mapping[str, float]) -> dict[str, Scalar]:
        """Class weights from the counts of all clients; also z0 once clients have reported mismatched pairs."""
        desirable, undesirable = pooled.get("n_desirable", 0.0), pooled.get("n_undesirable", 0.0)
        fixed = [None if t == "auto" else float(t) for t in (self.desirable_weight, self.undesirable_weight)]
        weights = class_weights(desirable, undesirable, *fixed)
        options: dict[str, Scalar] = {"desirable-weight": weights[0], "undesirable-weight": weights[1]}
        if pooled.get("kl_count", 0.0) > 0:
            options["z0"] = pooled["kl_sum"] / pooled["kl_count"]
        return options


def trl_columns(rows: Sequence[Example]) -> dict[str, list[Any]]:  # Any: token ids and flags
    """The columns of TRL's KTOTrainer, without those of the reference."""
    return {
        "prompt_ids": [e.prompt for e in rows],
        "completion_ids": [e.completions[0] for e in rows],
        "KL_completion_ids": [e.mismatched for e in rows],
        "label": [bool(e.label) for e in rows],
    }


def class_weights(
    desirable: float,
    undesirable: float,
    fixed_desirable: float | None = None,
    fixed_undesirable: float | None = None,
) -> tuple[float, float]:
    """Weights (w_D, w_U) with w_D n_D : w_U n_U inside BAND, at its nearest bound if weights of 1 are outside.

    A fixed weight does not change. If both are free, the weight of the rarer class is raised. Free weights are 1 if
    one of the classes is empty.
    """
    w_d, w_u = fixed_desirable or 1.0, fixed_undesirable or 1.0
    if not desirable or not undesirable or (fixed_desirable and fixed_undesirable):
        return w_d, w_u
    ratio = w_d * desirable / (w_u * undesirable)
    factor = min(max(ratio, BAND[0]), BAND[1]) / ratio
    raise_desirable = factor > 1 if fixed_desirable is fixed_undesirable else fixed_desirable is None
    return (w_d * factor, w_u) if raise_desirable else (w_d, w_u / factor)


def deranged(examples: Sequence[Example], *, seed: int, max_length: int) -> list[Example]:
    """Each example with the completion of another example, from another prompt where possible: a derangement.

    Rows are shuffled by seed, grouped by prompt and rotated by the size of the largest group. A row gets a partner of
    its own prompt only if its group has more than half of all rows.
    """
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    for row in order:
        groups[examples[row].prompt].append(row)
    line = [row for group in groups.values() for row in group]
    shift = max((len(group) for group in groups.values()), default=0)
    if shift == len(line):  # a single prompt: use the next row
        shift = 1
    partner = dict(zip(line, line[shift:] + line[:shift], strict=True))
    return _with_mismatched(examples, partner, max_length)


def rotated(examples: Sequence[Example], group: int, *, max_length: int) -> list[Example]:
    """The pairing of TRL 1.16: in groups of the per-device batch size, row i gets the completion of row i - 1.

    A last group of one row is merged with the group before it; TRL would pair that row with itself.
    """
    partner: dict[int, int] = {}
    starts = list(range(0, len(examples), group))
    if len(starts) > 1 and len(examples) - starts[-1] == 1:
        starts.pop()
    for start, stop in zip(starts, [*starts[1:], len(examples)], strict=True):
        rows = list(range(start, stop))
        partner |= dict(zip(rows, rows[-1:] + rows[:-1], strict=True))
    return _with_mismatched(examples, partner, max_length)


def _with_mismatched(
    examples: Sequence[Example], partner: Mapping[int, int], max_length: int
) -> list[Example]:
    """Each example with its partner's completion, cut to `max_length`; none for a row that is its own partner."""
    paired = []
    for row, example in enumerate(examples):
        room = max_length - len(example.prompt)
        mismatched = examples[partner[row]].completions[0][:room] if partner[row] != row else ()
        paired.append(replace(example, mismatched=mismatched))
    return paired


def _weight(text: str, options: Mapping[str, Scalar], key: str) -> float:
    return float(options.get(key, 1.0)) if text == "auto" else float(text)


def _positive(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False


PLUGIN = KTO
