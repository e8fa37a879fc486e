"""Refuse values of a configuration that cannot be combined, before anything is loaded."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

from core.errors import ConfigError
from core.plugins import names, plugin
from core.sections import Config
from core.types import Scalar

Plugin = Any  # a tasks.base.Task or a strategies.base.Strategy
# keys of sections that all plugins share, but that only the tasks read that name them in Task.shared_keys
TASK_KEYS = ("data.allocation", "data.prompt-format", "lora.dropout")


def check_combinations(config: Config, page: Mapping[str, Scalar]) -> None:
    """Raise ConfigError for values that are valid separately but not together. page: the defaults."""
    task, strategy = config.task_choice.build(), config.strategy_choice.build()
    problems = chain(
        _shared_keys(config, page, task),
        _rounds(config),
        _training(config, task),
        _private_parts(config, task, strategy),
        _rlft(config, page, task, strategy),
        task.conflicts(config),
        strategy.conflicts(config),
    )
    if problem := next(problems, None):
        raise ConfigError(problem)


def _shared_keys(config: Config, page: Mapping[str, Scalar], task: Plugin) -> Iterator[str]:
    for key in TASK_KEYS:
        value = dict(config.flat)[key]
        if key not in task.shared_keys and value != page[key]:
            readers = _names("tasks", lambda cls, key=key: key in cls.shared_keys)
            yield f"{key} = {value!r} has no effect with task.name = {config.task_choice.name!r}; it is for {readers}"


def _rounds(config: Config) -> Iterator[str]:
    if config.fault.min_replies > config.strategy.min_available_nodes:
        yield (
            f"fault.min-replies = {config.fault.min_replies} is above strategy.min-available-nodes = "
            f"{config.strategy.min_available_nodes}: no round could be completed; lower the first or raise the second"
        )


def _training(config: Config, task: Plugin) -> Iterator[str]:
    train, aggregation = config.train, config.lora.aggregation
    if train.engine not in task.engines:
        tasks = _names("tasks", lambda cls: train.engine in cls.engines)
        yield f"train.engine = {train.engine!r} trains {tasks}, not {config.task_choice.name!r}"
    if train.engine == "trl" and aggregation in ("ffa", "rolora"):
        yield (
            f"lora.aggregation = {aggregation!r} freezes one of A and B in a local training, which "
            "train.engine = 'trl' cannot do; use train.engine = 'accord'"
        )
    if train.optimizer_state == "keep":
        if aggregation in ("flora", "flexlora"):
            yield (
                f"train.optimizer-state = 'keep': with lora.aggregation = {aggregation!r} A and B are replaced in "
                "every round, so the moments of the previous ones do not apply; use 'reset'"
            )
        if train.optimizer == "sgd":
            yield "train.optimizer-state = 'keep' has no effect with train.optimizer = 'sgd'"
        if train.engine == "trl":
            yield "train.optimizer-state = 'keep' needs train.engine = 'accord'"
    if train.local_epochs and train.total_epochs:
        yield (
            f"train.local-epochs = {train.local_epochs} and train.total-epochs = {train.total_epochs} both set "
            "how many steps a client takes; set one of them to 0"
        )
    if train.lr_schedule == "constant" and train.min_learning_rate:
        yield (
            f"train.min-learning-rate = {train.min_learning_rate} has no effect with train.lr-schedule = 'constant'"
        )
    if train.min_learning_rate > train.learning_rate:
        yield (
            f"train.min-learning-rate = {train.min_learning_rate} is above train.learning-rate = {train.learning_rate}"
        )


def _private_parts(config: Config, task: Plugin, strategy: Plugin) -> Iterator[str]:
    if task.has_private_parts and not strategy.allows_private_parts:
        strategies = _names("strategies", lambda cls: cls.allows_private_parts)
        yield (
            f"task.name = {config.task_choice.name!r} gives every client private parts, which strategy.name = "
            f"{config.strategy_choice.name!r} does not support; use one of {strategies}"
        )


def _rlft(config: Config, page: Mapping[str, Scalar], task: Plugin, strategy: Plugin) -> Iterator[str]:
    rlft, name = config.rlft, config.strategy_choice.name
    if not rlft.epochs:
        if changed := [k for k, v in config.flat if k.startswith("rlft.") and v != page[k]]:
            yield f"{changed[0]} has no effect with rlft.epochs = 0; set rlft.epochs as well"
        return
    if task.reads != "choices":
        judges = _names("tasks", lambda cls: cls.reads == "choices")
        yield (
            f"rlft.epochs = {rlft.epochs} needs one of the tasks {judges}, whose adapters can judge answers; "
            f"{config.task_choice.name!r} trains a policy itself"
        )
    if not strategy.server_learns or config.lora.aggregation == "fedsa":
        yield (
            f"rlft.epochs = {rlft.epochs}: with strategy.name = {name!r} and lora.aggregation = "
            f"{config.lora.aggregation!r} clients keep what they learn, so the server has no selector to judge answers"
        )
    if config.data.flipped_clients and rlft.judge in ("auto", "truth"):
        yield (
            f"rlft.judge = {rlft.judge!r} knows what clients want before data.flipped-clients = "
            f"{config.data.flipped_clients} reverses it; use pairs | none"
        )
    if rlft.policy != "population" and not strategy.groups_clients:
        strategies = _names("strategies", lambda cls: cls.groups_clients)
        yield (
            f"rlft.policy = {rlft.policy!r} makes a policy for each selector, and strategy.name = {name!r} has one; "
            f"use {strategies}"
        )
    if rlft.vote == "majority" and rlft.policy == "clusters":
        yield "rlft.vote = 'majority' has no effect with rlft.policy = 'clusters': one selector labels"


def _names(package: str, condition: Callable[[type[Any]], bool]) -> str:
    """Return the names of the plugins that fit, for a message; a plugin that cannot be imported does not count."""
    fitting = []
    for name in names(package):
        with contextlib.suppress(ConfigError):
            fitting += [name] if condition(plugin(package, name)) else []
    return ", ".join(fitting)
