"""Refuse values of a configuration that cannot be combined, before anything is loaded."""

from collections.abc import Mapping
from typing import Any

from core.errors import ConfigError
from core.sections import Config, TrainConfig
from core.types import Scalar


def check_combinations(config: Config, page: Mapping[str, Scalar]) -> None:
    """Raise ConfigError for values that are valid separately but not together. page: the defaults."""
    task, strategy, source = config.task_choice.name, config.strategy_choice.name, config.source_choice.name
    if config.fault.min_replies > config.strategy.min_available_nodes:
        raise ConfigError(
            f"fault.min-replies = {config.fault.min_replies} is above strategy.min-available-nodes = "
            f"{config.strategy.min_available_nodes}: no round could be completed; lower the first or raise the second"
        )
    if config.data.allocation != "ktoo" and task != "kto":
        raise ConfigError(
            f"data.allocation = {config.data.allocation!r} is for task.name = 'kto', not {task!r}"
        )
    if config.lora.dropout and task != "sft":
        raise ConfigError(
            f"lora.dropout = {config.lora.dropout} is for task.name = 'sft'; {task} trains without dropout"
        )
    if config.data.prompt_format != "auto" and task in ("selector", "reward"):
        raise ConfigError(
            f"data.prompt-format = {config.data.prompt_format!r} has no effect with task.name = {task!r}, which "
            "has its own prompts"
        )
    _check_private(task, strategy)
    _check_train(config.train)
    _check_rlft(config, page)
    if config.train.optimizer_state == "keep" and config.lora.aggregation in ("flora", "flexlora"):
        raise ConfigError(
            f"train.optimizer-state = 'keep': with lora.aggregation = {config.lora.aggregation!r} A and B are replaced "
            "in every round, so the moments of the previous ones do not apply; use 'reset'"
        )
    if strategy == "fedbiscuit":
        _check_selectors(config, dict(config.strategy_choice.options))
    if config.train.engine == "trl":
        options = dict(config.task_choice.options)
        if task not in ("sft", "dpo", "kto"):
            raise ConfigError(f"train.engine = 'trl' runs sft, dpo and kto, not {task!r}")
        if options.get("label-smoothing") or options.get("reference-point", "batch") != "batch":
            raise ConfigError(
                "task.label-smoothing and task.reference-point = 'pooled' need train.engine = 'accord'"
            )
        if config.lora.aggregation in ("ffa", "rolora"):
            raise ConfigError(
                f"lora.aggregation = {config.lora.aggregation!r} freezes one of A and B in a local training, which "
                "train.engine = 'trl' cannot do; use train.engine = 'accord'"
            )
    if source == "jsonl" and strategy == "centralized" and not dict(config.source_choice.options).get("path"):
        raise ConfigError("strategy.name = 'centralized' needs every row in one place: set data.path")


def _check_private(task: str, strategy: str) -> None:
    if task == "pdpo" and strategy in ("scaffold", "ditto", "fedbis", "fedbiscuit", "centralized"):
        raise ConfigError(
            f"task.name = 'pdpo' gives every client private parts, which strategy.name = {strategy!r} does not "
            "support; use fedpdpo, fedavg, fedprox, local or a server optimiser"
        )
    if strategy == "fedpdpo" and task != "pdpo":
        raise ConfigError(
            f"strategy.name = 'fedpdpo' is for task.name = 'pdpo': with {task!r} a client has no private parts"
        )


def _check_selectors(config: Config, options: Mapping[str, Any]) -> None:
    warmup, rounds = options["selectors"] * options["warmup-rounds"], config.run.num_server_rounds
    if warmup >= rounds:
        raise ConfigError(
            f"strategy.selectors x strategy.warmup-rounds = {warmup} rounds of warm-up, and run.num-server-rounds = "
            f"{rounds}: no client would train the selector of its group; lower the first or raise the second"
        )
    if config.train.optimizer_state == "keep":
        raise ConfigError(
            "train.optimizer-state = 'keep': with strategy.name = 'fedbiscuit' a client trains several "
            "selectors in turn, so the moments of the previous one do not apply; use 'reset'"
        )


def _check_rlft(config: Config, page: Mapping[str, Scalar]) -> None:
    rlft, strategy = config.rlft, config.strategy_choice.name
    if not rlft.epochs:
        if touched := [k for k, v in config.flat if k.startswith("rlft.") and v != page[k]]:
            raise ConfigError(f"{touched[0]} has no effect with rlft.epochs = 0; set rlft.epochs as well")
        return
    if config.task_choice.name not in ("selector", "reward"):
        raise ConfigError(
            f"rlft.epochs = {rlft.epochs} needs task.name = 'selector' or 'reward', whose adapters can judge answers; "
            f"{config.task_choice.name!r} trains a policy itself"
        )
    if strategy == "local" or config.lora.aggregation == "fedsa":
        raise ConfigError(
            f"rlft.epochs = {rlft.epochs}: with strategy.name = {strategy!r} and lora.aggregation = "
            f"{config.lora.aggregation!r} clients keep what they learn, so the server has no selector to judge answers"
        )
    if config.data.flipped_clients and rlft.judge in ("auto", "truth"):
        raise ConfigError(
            f"rlft.judge = {rlft.judge!r} knows what clients want before data.flipped-clients = "
            f"{config.data.flipped_clients} reverses it; use pairs | none"
        )
    if rlft.policy != "population" and strategy != "fedbiscuit":
        raise ConfigError(
            f"rlft.policy = {rlft.policy!r} makes a policy for each selector, and strategy.name = {strategy!r} has "
            "one; use strategy.name = 'fedbiscuit'"
        )
    if rlft.vote == "majority" and rlft.policy == "clusters":
        raise ConfigError(
            "rlft.vote = 'majority' has no effect with rlft.policy = 'clusters': one selector labels"
        )


def _check_train(train: TrainConfig) -> None:
    if train.optimizer_state == "keep":
        if train.optimizer == "sgd":
            raise ConfigError("train.optimizer-state = 'keep' has no effect with train.optimizer = 'sgd'")
        if train.engine == "trl":
            raise ConfigError("train.optimizer-state = 'keep' needs train.engine = 'accord'")
    if train.local_epochs and train.total_epochs:
        raise ConfigError(
            f"train.local-epochs = {train.local_epochs} and train.total-epochs = {train.total_epochs} both set "
            "how many steps a client takes; set one of them to 0"
        )
    if train.lr_schedule == "constant" and train.min_learning_rate:
        raise ConfigError(
            f"train.min-learning-rate = {train.min_learning_rate} has no effect with train.lr-schedule = 'constant'"
        )
    if train.min_learning_rate > train.learning_rate:
        raise ConfigError(
            f"train.min-learning-rate = {train.min_learning_rate} is above train.learning-rate = {train.learning_rate}"
        )
