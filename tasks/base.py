"""The interface of tasks: what local training optimises, from rows and log-probabilities.

A task depends on neither clients nor rounds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from core.sections import Config
from core.types import Metrics, OrderOption, Scalar

Row = dict[str, Any]  # a canonical row: TRL's columns, plain strings or conversational message lists


@dataclass(frozen=True)
class Example:
    """One tokenised row: a prompt and the completions that share it.

    dpo: completions = (chosen, rejected). kto: (completion,), with `mismatched` added later. sft: (completion,).
    selector: completions = the letters A and B; the prompt holds both answers in one order, `twin` in the other.
    reward: the same letters; the prompt holds the first answer, `twin` the second.
    """

    prompt: tuple[int, ...]  # token ids, BOS included where the tokenizer adds one
    completions: tuple[tuple[int, ...], ...]  # token ids, EOS included unless it was cut off
    label: bool | None = None  # kto: whether the completion is desirable
    mismatched: tuple[int, ...] = ()  # kto: another row's completion, for the KL estimate; () for none
    twin: tuple[int, ...] = ()  # a second prompt with the same completions
    lengths: tuple[int, ...] = ()  # numbers of tokens of the answers in the prompts
    confidence: float = 1.0  # probability that the label, or the order of the pair, is right


@dataclass(frozen=True)
class Batch:
    """The input of a loss: summed log-probabilities of C completions under policy and reference, float32.

    Completions are flattened in the order of examples, those after a `twin` last; `index[i]` lists the positions of
    example i's. Where Task.reads is "choices", `logps` holds the logits of the letters instead.
    """

    examples: tuple[Example, ...]
    logps: Tensor  # (C,) policy, summed over completion tokens, with grad
    ref_logps: Tensor | None  # (C,) frozen base, no grad; None for a task without a reference
    tokens: Tensor  # (C,) int64, completion tokens of each
    index: tuple[tuple[int, ...], ...]
    kl_logps: Tensor | None = None  # (M,) policy on mismatched completions, no grad (kto); M may be 0
    kl_ref_logps: Tensor | None = None  # (M,)
    options: Mapping[str, Scalar] = field(default_factory=dict)  # of the order; see Task.pooled_options
    running: Mapping[str, float] = field(default_factory=dict)  # LossOutput.running of the batch before
    hits: Tensor | None = None  # (C,) int64, tokens that the policy ranks first; None for kto
    explicit: Tensor | None = None  # (C,) rewards of the client's private head, with grad; None without one


@dataclass(frozen=True)
class LossOutput:
    """The loss of a batch, with its metrics and what the task carries on."""

    loss: Tensor  # scalar
    metrics: Metrics  # under TRL's names (`rewards/chosen`, ...)
    running: Mapping[str, float] = field(default_factory=dict)  # state for the next batch: Batch.running
    sums: Mapping[str, float] = field(default_factory=dict)  # of this batch; see Task.pooled_options


@dataclass(frozen=True)
class Parts:
    """The private parts of a client behind the body of the base (tasks/model/private_parts.py); none by default."""

    bottleneck: Literal["", "residual", "gate"] = ""
    width: int = 0  # of the bottleneck; 0: channels / 16, at least 16
    head: bool = False  # a private vocabulary head
    rank: int = 0  # of the difference to the base's vocabulary head; 0: full rank
    reward: bool = False  # a reward head


NO_PARTS = Parts()

# metrics of the implicit rewards of pairs and of thumbs
REWARDS = (
    "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected",
)  # fmt: skip


@dataclass(frozen=True)
class TrlTraining:
    """How TRL trains a task: its trainer, that trainer's options and the columns of its data set."""

    trainer: Literal["sft", "dpo", "kto"]  # SFTTrainer, DPOTrainer or KTOTrainer
    columns: Callable[
        [Sequence[Example]], dict[str, list[Any]]
    ]  # token ids, flags or numbers; an entry per row
    options: Mapping[str, Any] = field(default_factory=dict)  # of the trainer's configuration: {"beta": 0.1}
    # the columns of the reference's log-probabilities of a row, in the order of tasks.forward.reference
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """Consecutive optimiser steps of a local training that update a subset of the tensors."""

    steps: int
    trains: Callable[[str], bool]  # whether a tensor is updated, by its name


def everything(name: str) -> bool:
    return True


class Task(Protocol):
    """A plugin of tasks/: a dataclass whose fields are its configuration keys.

    Methods with a body are defaults that suit most tasks.
    """

    columns: ClassVar[tuple[str, ...]]  # of the canonical rows it trains on
    needs_reference: ClassVar[bool]
    # what the loss is a mean over, which weighs micro-batches
    averages: ClassVar[Literal["examples", "tokens"]] = "examples"
    # what the loss reads of a completion: the log-probability of all tokens | the logit of its only token
    reads: ClassVar[Literal["logps", "choices"]] = "logps"

    order_options: ClassVar[Mapping[str, OrderOption]] = {}  # that pooled_options() may return
    metrics: ClassVar[tuple[str, ...]] = ()  # names or patterns that loss() reports, and "sum/*" of its sums
    # keys of sections that all plugins share, but that only some tasks read; any other value than the default is
    # refused with a task that does not name the key here
    shared_keys: ClassVar[tuple[str, ...]] = ("data.prompt-format",)
    recommended_options: ClassVar[
        tuple[str, ...]
    ] = ()  # those whose value 0 stands for the data source's advice
    rates_answers: ClassVar[bool] = False  # where choices are read: whether one rates an answer by itself
    joins_rows: ClassVar[bool] = False  # whether a row's loss depends on other rows of its micro-batch
    engines: ClassVar[tuple[str, ...]] = ("accord",)  # the values of train.engine that can train it

    def __init_subclass__(cls, **options: Any) -> None:
        """A subclass with a loss of its own is not trained by the engines of its parent unless it says so."""
        super().__init_subclass__(**options)
        if "loss" in vars(cls) and "engines" not in vars(cls):
            cls.engines = Task.engines

    @property
    def reward_scale(self) -> float:
        """The factor of the implicit reward, reward_scale * log(pi / pi_ref).

        Where choices are read, reward_scale * (z - z of the twin) are the log-odds that the first answer is better.
        """
        ...

    @property
    def private_parts(self) -> Parts:
        """The private parts that every client has in addition to the adapter."""
        return NO_PARTS

    @property
    def has_private_parts(self) -> bool:
        return self.private_parts != NO_PARTS

    def conflicts(self, config: Config) -> Iterator[str]:
        """Yield the reasons why this task cannot run with other settings: keys, values and what to do."""
        return iter(())

    def rate(self, part: str) -> float:
        """The learning rate of a private part, in multiples of train.learning-rate."""
        return 1.0

    def stages(self, steps: int) -> tuple[Stage, ...]:
        """The stages of a local training of `steps` steps."""
        return (Stage(steps, everything),)

    def examples(self, rows: Sequence[Row], encode: Any) -> list[Example]:
        """Tokenise canonical rows. encode: a tasks.tokens.encode.Encoder, which counts or refuses unusable rows."""
        ...

    def prepare(self, examples: Sequence[Example], *, seed: int, max_length: int) -> list[Example]:
        """The examples for local training, e.g. with mismatched completions. seed: one per client, for all rounds."""
        return list(examples)

    def loss(self, batch: Batch) -> LossOutput:
        """The loss of a batch, which it does not modify."""
        ...

    def trl(self, options: Mapping[str, Scalar], batch_size: int) -> TrlTraining | None:
        """How TRL trains the task with the settings of an order; a task whose `engines` hold "trl" returns it.

        Raises ConfigError for settings that TRL does not support. batch_size: the rows of a micro-batch.
        """
        return None

    def row_counts(self, examples: Sequence[Example]) -> Metrics:
        """Counts of a client's training rows, e.g. n_desirable, which the server sums over clients; may be empty."""
        return {}

    def pooled_options(self, pooled: Mapping[str, float]) -> dict[str, Scalar]:
        """On the server: options of every order, from the sums over all clients; may be empty.

        pooled: the sums of row_counts() and of LossOutput.sums. The options reach Batch.options. A pure function.
        """
        return {}
