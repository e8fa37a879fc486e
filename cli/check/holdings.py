"""A client's rows as counts and lengths, without any text: what `accord check` prints before a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.sections import Config
from core.types import Json, Metrics
from tasks.base import Example, Row, Task
from tasks.model.base import Base
from tasks.tokens.encode import Encoder

UNCUT = 1 << 30  # tokens: a length that no row reaches


@dataclass(frozen=True)
class Holding:
    """One client's rows as its task reads them, in counts."""

    client: int
    train: int  # usable training rows
    heldout: int
    skipped: Mapping[str, int]  # rows left out, by reason
    row_counts: Metrics  # the task's own counts of the training rows
    full: int  # training rows that fill train.max-length and so may have been cut
    hello: Json  # the reply of the client to the server's first message
    lengths: tuple[int, ...] = ()  # tokens of each training row before any cut; () if not measured


def tokens(example: Example) -> int:
    """The length in tokens of the longest sequence of a row."""
    return max(len(example.prompt), len(example.twin)) + max(map(len, example.completions))


def uncut_lengths(base: Base, task: Task, rows: Sequence[Row], config: Config) -> tuple[int, ...]:
    """The length in tokens of each training row without the cut to train.max-length. Raises DataError."""
    encoder = Encoder(base.tokenizer, config.data.prompt_format, UNCUT, on_bad_row=config.data.on_bad_row)
    return tuple(tokens(example) for example in task.examples(rows, encoder))


def rendered(base: Base, examples: Sequence[Example]) -> list[list[tuple[str, str]]]:
    """Rows as the model will see them: for each row, its (name, text) parts, decoded from the token ids."""

    def decode(ids: Sequence[int]) -> str:
        return str(base.tokenizer.decode(list(ids)))

    rows = []
    for example in examples:
        parts = [("prompt", decode(example.prompt))]
        if example.twin:
            parts.append(("twin", decode(example.twin)))
        names = ("chosen", "rejected") if len(example.completions) == 2 and not example.twin else ()
        for number, completion in enumerate(example.completions):
            parts.append((names[number] if names else "completion", decode(completion)))
        if example.label is not None:
            parts.append(("label", "desirable" if example.label else "undesirable"))
        if example.confidence != 1.0:
            parts.append(("confidence", f"{example.confidence:g}"))
        rows.append(parts)
    return rows
