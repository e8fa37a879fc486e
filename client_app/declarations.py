"""What the task and the strategy of a run declare: the options of their orders and the metrics of their clients.

A site's policy checks orders and answers by these; a client refuses to report a metric that nothing declares.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from core.errors import ConfigError
from core.sections import Config
from core.types import OrderOption
from tasks.base import Task
from tasks.scoring.evaluate import SCORES
from tasks.training.engine import METRICS

SECONDS = ("seconds/load", "seconds/train")
TRUTH = ("truth/*",)  # of a data source with a planted truth


def declared_options(config: Config) -> dict[str, OrderOption]:
    """Return the options that orders of this run may have."""
    return {**config.task_choice.build().order_options, **config.strategy_choice.build().order_options}


def declared_metrics(config: Config) -> tuple[str, ...]:
    """Return the names and patterns of all metrics that a client of this run may report."""
    task: Task = config.task_choice.build()
    engine = METRICS[config.train.engine]
    return (
        *SECONDS, *TRUTH, *engine, *task.metrics, *SCORES[task.reads], *config.strategy_choice.build().metrics
    )  # fmt: skip


def is_declared(metric: str, declared: Iterable[str]) -> bool:
    return any(fnmatchcase(metric, pattern) for pattern in declared)


def check_metrics(config: Config, metrics: Iterable[str]) -> None:
    """Raise ConfigError for a metric that neither task nor strategy declares, which a site's policy would drop."""
    declared = declared_metrics(config)
    if undeclared := sorted(name for name in metrics if not is_declared(name, declared)):
        raise ConfigError(
            f"a client reports the metric {undeclared[0]!r}, which neither task.name = {config.task_choice.name!r} nor "
            f"strategy.name = {config.strategy_choice.name!r} declares; add it to `metrics` of its class"
        )
