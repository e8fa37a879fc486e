"""One entry point for both training engines, and the encoding of a client's rows, cached on its disk."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

from core.errors import ConfigError, DataError
from core.sections import Config, TrainConfig
from core.types import Metrics, Scalar
from tasks.base import Example, Row, Task
from tasks.data.reading.places import place_of
from tasks.forward import processes
from tasks.model.base import Base
from tasks.pretrained.loading import embedding_rows
from tasks.scoring.evaluate import evaluate as score
from tasks.scoring.evaluate import heldout_examples
from tasks.tokens.cache import Cache, rows_key
from tasks.tokens.choice import check_certain
from tasks.tokens.encode import REMARKS, Encoder
from tasks.training import loop
from tasks.training.loop import TrainReport
from tasks.training.stepper import LocalHooks


@dataclass(frozen=True)
class EncodedRows:
    """A client's rows as token ids, with counts of the rows that were skipped."""

    usable: list[Example]
    skipped: Mapping[str, int]  # number of rows by reason
    remarks: Mapping[str, int]  # number of usable rows by remark (REMARKS of tasks.tokens.encode)


def encode_training_rows(
    base: Base, task: Task, rows: Sequence[Row], config: Config, cache: Cache
) -> EncodedRows:
    """Encode a client's training rows for the task; at least one row is usable.

    Raises:
        DataError: no row is usable.
        ConfigError: a label has a confidence below 1 and train.engine does not support that.
    """
    encoded = encode_rows(base, task, rows, config, cache)
    if config.train.engine == "trl":
        check_certain(encoded.usable)
    if not encoded.usable:
        raise DataError(
            f"none of {len(rows)} training rows can be used: {dict(encoded.skipped) or 'there are none'}"
        )
    return encoded


def encode_rows(base: Base, task: Task, rows: Sequence[Row], config: Config, cache: Cache) -> EncodedRows:
    """Encode rows for the task, or read them from the client's cache on disk; the result may be empty."""
    key = rows_key(rows, type(task).__name__, base.fingerprint, *_lengths(config), config.data.on_bad_row)

    def make() -> tuple[list[Example], Counter[str]]:
        encoder = _encoder(base, rows, config)
        return task.examples(rows, encoder), encoder.skipped + encoder.remarks

    return _encoded_rows(*cache.examples(key, make))


# names and patterns of what every local training reports, by engine; the task's own come on top
METRICS: Mapping[str, tuple[str, ...]] = {
    "accord": ("loss", "grad_norm", "learning_rate"),
    "trl": ("loss", "grad_norm", "learning_rate", "entropy", "logits/*", "mean_token_accuracy", "aux_loss"),
}


class TrainArguments(TypedDict):
    """The keyword arguments of a client's local training; tasks.training.loop.train describes them."""

    seed: int
    data_seed: int
    rnd: int
    options: Mapping[str, Scalar]
    cache: Cache
    hooks: LocalHooks


def train(
    base: Base, task: Task, examples: Sequence[Example], cfg: TrainConfig, **arguments: Unpack[TrainArguments]
) -> TrainReport:
    """Train the base's current adapter locally, with the engine that train.engine names."""
    if cfg.engine == "trl":
        if processes.size() > 1:
            raise ConfigError(
                f"train.engine = 'trl' trains in one process, and this site has {processes.size()}; use 'accord'"
            )
        from tasks.training import trl_engine  # importing trl takes seconds

        return trl_engine.train(base, task, examples, cfg, **arguments)
    return loop.train(base, task, examples, cfg, **arguments)


def evaluate(base: Base, task: Task, heldout: Sequence[Row], config: Config, cache: Cache) -> Metrics:
    """Score held-out rows under the base's current adapter."""
    return score(base, task, heldout_of(base, task, heldout, config, cache), cache=cache)


def heldout_of(base: Base, task: Task, heldout: Sequence[Row], config: Config, cache: Cache) -> list[Example]:
    """The encoded held-out rows without their counts; see `encode_heldout_rows`."""
    return encode_heldout_rows(base, task, heldout, config, cache).usable


def encode_heldout_rows(
    base: Base, task: Task, heldout: Sequence[Row], config: Config, cache: Cache
) -> EncodedRows:
    """Encode held-out rows for scoring, or read them from the client's cache on disk; the result may be empty."""
    kind = (
        "heldout" if task.reads == "logps" else type(task).__name__
    )  # tasks that read choices use other prompts
    key = rows_key(heldout, kind, base.fingerprint, *_lengths(config), config.data.on_bad_row)

    def make() -> tuple[list[Example], Counter[str]]:
        encoder = _encoder(base, heldout, config)
        return heldout_examples(heldout, encoder, task), encoder.skipped + encoder.remarks

    return _encoded_rows(*cache.examples(key, make))


def _encoded_rows(usable: list[Example], counts: Mapping[str, int]) -> EncodedRows:
    """Separate the counts of an encoder, which the cache stores together, into skipped rows and remarks."""
    skipped = {reason: count for reason, count in counts.items() if reason not in REMARKS}
    remarks = {remark: counts[remark] for remark in REMARKS if remark in counts}
    return EncodedRows(usable, skipped, remarks)


def _encoder(base: Base, rows: Sequence[Row], config: Config) -> Encoder:
    """An encoder whose messages name each row by the file and line that it was read from."""
    places = [place_of(row, number) for number, row in enumerate(rows)]
    return Encoder(
        base.tokenizer,
        *_lengths(config),
        on_bad_row=config.data.on_bad_row,
        places=places,
        vocabulary=embedding_rows(base.causal),
    )


def _lengths(config: Config) -> tuple[str, int, str]:
    return config.data.prompt_format, config.train.max_length, config.train.on_long_row
