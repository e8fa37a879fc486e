"""The two training engines behind one call, and a client's rows as tokens, made once."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
class Examples:
    kept: list[Example]
    skipped: Mapping[str, int]  # by reason
    remarks: Mapping[str, int]  # of rows that are used, by REMARKS of tasks.tokens.encode


def examples(base: Base, task: Task, rows: Sequence[Row], config: Config, cache: Cache) -> Examples:
    """A client's training rows as the task reads them. Raises DataError when none can be used, ConfigError for labels
    of which train.engine cannot take the confidence."""
    found = usable(base, task, rows, config, cache)
    if config.train.engine == "trl":
        check_certain(found.kept)
    if not found.kept:
        raise DataError(
            f"none of {len(rows)} training rows can be used: {dict(found.skipped) or 'there are none'}"
        )
    return found


def usable(base: Base, task: Task, rows: Sequence[Row], config: Config, cache: Cache) -> Examples:
    """Rows as the task reads them, from the cache on the client's disk where they are known; there may be none."""
    key = rows_key(rows, type(task).__name__, base.fingerprint, *_lengths(config), config.data.on_bad_row)

    def make() -> tuple[list[Example], Counter[str]]:
        encoder = _encoder(base, rows, config)
        return task.examples(rows, encoder), encoder.skipped + encoder.remarks

    return _examples(*cache.examples(key, make))


def train(
    base: Base,
    task: Task,
    kept: Sequence[Example],
    cfg: TrainConfig,
    *,
    seed: int,
    data_seed: int,
    knobs: Mapping[str, Scalar],
    cache: Cache,
    hooks: LocalHooks,
) -> TrainReport:
    """One local training of the base's current adapter, by the engine that train.engine names."""
    if cfg.engine == "trl":
        if processes.size() > 1:
            raise ConfigError(
                "train.engine = 'trl' trains in one process; this site has several: use 'accord'"
            )
        from tasks.training import trl_engine  # importing trl takes seconds

        return trl_engine.train(
            base, task, kept, cfg, seed=seed, data_seed=data_seed, knobs=knobs, cache=cache, hooks=hooks
        )
    return loop.train(
        base, task, kept, cfg, seed=seed, data_seed=data_seed, knobs=knobs, cache=cache, hooks=hooks
    )


def evaluate(base: Base, task: Task, heldout: Sequence[Row], config: Config, cache: Cache) -> Metrics:
    """The scores of held-out rows under the base's current adapter."""
    return score(base, task, heldout_of(base, task, heldout, config, cache), cache=cache)


def heldout_of(base: Base, task: Task, heldout: Sequence[Row], config: Config, cache: Cache) -> list[Example]:
    """Held-out rows as they are scored, from the cache on the client's disk where they are known."""
    return usable_heldout(base, task, heldout, config, cache).kept


def usable_heldout(base: Base, task: Task, heldout: Sequence[Row], config: Config, cache: Cache) -> Examples:
    """Held-out rows as they are scored, and a count of those that cannot be; there may be none."""
    kind = "heldout" if task.reads == "logps" else type(task).__name__  # choices have prompts of their own
    key = rows_key(heldout, kind, base.fingerprint, *_lengths(config), config.data.on_bad_row)

    def make() -> tuple[list[Example], Counter[str]]:
        encoder = _encoder(base, heldout, config)
        return heldout_examples(heldout, encoder, task), encoder.skipped + encoder.remarks

    return _examples(*cache.examples(key, make))


def _examples(usable: list[Example], counts: Mapping[str, int]) -> Examples:
    """Examples with the counts of an encoder, which the cache holds in one."""
    skipped = {why: count for why, count in counts.items() if why not in REMARKS}
    return Examples(usable, skipped, {why: counts[why] for why in REMARKS if why in counts})


def _encoder(base: Base, rows: Sequence[Row], config: Config) -> Encoder:
    """An encoder of these rows, which names them by where they were read."""
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
