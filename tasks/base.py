"""Task: what local training optimises. It knows rows and log-probabilities, never clients or rounds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from core.types import Metrics, Scalar

Row = dict[str, Any]  # a canonical row: TRL's columns, plain strings or conversational message lists


@dataclass(frozen=True)
class Example:
    """One tokenised row: a prompt and its completions, which share it (a tree of depth two).

    dpo: completions = (chosen, rejected). kto: (completion,), later joined by `mismatched`. sft: (completion,).
    selector, reward: completions = the letters A and B; the answers are in the prompt, in one order or one alone,
    and in `twin`, in the other order or the other alone.
    """

    prompt: tuple[int, ...]  # token ids, BOS included where the tokenizer adds one
    completions: tuple[tuple[int, ...], ...]  # token ids, EOS included where it fits
    label: bool | None = None  # kto: desirable?
    mismatched: tuple[int, ...] = ()  # kto: another row's completion, for the KL estimate; () for none
    twin: tuple[int, ...] = ()  # a second prompt, followed by the same completions
    lengths: tuple[int, ...] = ()  # tokens of the answers that are in the prompts
    confidence: float = 1.0  # probability that the label, or the order of the pair, is right


@dataclass(frozen=True)
class Batch:
    """What a loss sees: summed log-probabilities of every completion under policy and reference.

    Completions are flattened in example order, those after `twin` last; `index[i]` lists example i's. All float32.
    Where Task.reads is "choices", `logps` holds their logits instead.
    """

    examples: tuple[Example, ...]
    logps: Tensor  # (C,) policy, summed over completion tokens, with grad
    ref_logps: Tensor | None  # (C,) frozen base, no grad; None for a task without a reference
    tokens: Tensor  # (C,) int64, completion tokens of each
    index: tuple[tuple[int, ...], ...]
    kl_logps: Tensor | None = None  # (M,) policy on mismatched completions, no grad (kto); M may be 0
    kl_ref_logps: Tensor | None = None  # (M,)
    knobs: Mapping[str, Scalar] = field(default_factory=dict)  # what Task.pooled_settings said for this round
    running: dict[str, float] = field(default_factory=dict)  # the task's own, from step to step
    sums: dict[str, float] = field(
        default_factory=dict
    )  # additive: reported to the server, for Task.pooled_settings
    hits: Tensor | None = None  # (C,) int64, tokens that are the policy's first choice; None for kto
    explicit: Tensor | None = None  # (C,) the client's own reward head, with grad; None without one


@dataclass(frozen=True)
class Parts:
    """Tensors of a client's own behind the body of the base (tasks/model/private_parts.py); by default none."""

    bottleneck: Literal["", "residual", "gate"] = ""
    width: int = 0  # of the bottleneck; 0: channels / 16, at least 16
    head: bool = False
    rank: int = 0  # of the change of the vocabulary head; 0: full
    reward: bool = False


NO_PARTS = Parts()


@dataclass(frozen=True)
class Stage:
    """Optimiser steps of a local training in which only some tensors learn."""

    steps: int
    trains: Callable[[str], bool]  # of a tensor's name


def everything(name: str) -> bool:
    return True


class Task(Protocol):
    """A plugin of tasks/: a dataclass whose fields are its keys. What is written out here is what most of them need."""

    columns: ClassVar[tuple[str, ...]]  # of the canonical row it trains on
    needs_reference: ClassVar[bool]
    averages: ClassVar[Literal["examples", "tokens"]]  # what its loss is a mean over; weighs micro-batches
    # of completions: the log-probability of all tokens | the raw logit of their only one
    reads: ClassVar[Literal["logps", "choices"]]

    joins_rows: ClassVar[bool] = False  # whether a row's loss depends on the rest of its micro-batch

    @property
    def reward_scale(self) -> float:
        """The implicit reward of a completion is reward_scale * log(pi / pi_ref). Where choices are read: the
        log-odds that the first answer is the better one are reward_scale * (z - z of the twin)."""
        ...

    @property
    def private_parts(self) -> Parts:
        """What every client holds for itself beside the adapter."""
        return NO_PARTS

    def rate(self, part: str) -> float:
        """The learning rate of a private part, in multiples of train.learning-rate."""
        return 1.0

    def stages(self, steps: int) -> tuple[Stage, ...]:
        """How a local training of so many steps is divided."""
        return (Stage(steps, everything),)

    def examples(self, rows: Sequence[Row], encode: Any) -> list[Example]:
        """Tokenise canonical rows (encode: tasks.tokens.encode.Encoder, which counts or refuses unusable rows)."""
        ...

    def prepare(self, examples: Sequence[Example], *, seed: int, max_length: int) -> list[Example]:
        """What local training adds to a client's examples; `seed` is the client's own, the same in every round."""
        return list(examples)

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """A scalar to minimise and TRL's metrics of this batch (`rewards/chosen`, ...)."""
        ...

    def row_counts(self, examples: Sequence[Example]) -> Metrics:
        """Additive counts a client may report about its training rows, e.g. n_desirable; may be empty."""
        return {}

    def pooled_settings(self, pooled: Mapping[str, float]) -> dict[str, Scalar]:
        """On the server: knobs for every client from the federation's pooled sums; may be empty. Pure."""
        return {}
