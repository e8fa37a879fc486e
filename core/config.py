"""Configuration: parsed once, at the edge, into frozen values; below that nobody sees a string key."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from core.errors import ConfigError
from core.plugins import build, knobs, plugin
from core.types import Scalar

PAGE = Path(__file__).parents[1] / "pyproject.toml"


@dataclass(frozen=True)
class RunConfig:
    seed: int = 42
    num_server_rounds: int = 12
    dir: str = "runs"
    resume: str = ""
    log_format: Literal["text", "json"] = "text"


@dataclass(frozen=True)
class ModelConfig:
    name: str = "toy"
    revision: str = "main"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantization: Literal["none", "8bit", "4bit"] = "none"
    device: str = "auto"
    cpu_threads: int = 1
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class LoraConfig:
    r: int = 8
    alpha: int = 16
    dropout: float = 0.0
    target_modules: str = "all-linear"
    aggregation: Literal["separate", "ffa", "rolora", "fedsa", "fedex", "flora", "flexlora"] = "separate"
    client_ranks: str = ""
    residual_rank: int = 0


@dataclass(frozen=True)
class TrainConfig:
    engine: Literal["accord", "trl"] = "accord"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    optimizer_state: Literal["reset", "keep"] = "reset"
    learning_rate: float = 2e-3
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"
    min_learning_rate: float = 0.0
    local_steps: int = 10
    local_epochs: float = 0.0
    total_epochs: float = 0.0
    row_sampling: Literal["shuffle", "openfedllm"] = "shuffle"
    per_device_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    max_length: int = 256
    on_long_row: Literal["truncate", "skip", "error"] = "truncate"
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0


@dataclass(frozen=True)
class DataConfig:
    """The keys of `data` that belong to no single source."""

    partitioner: Literal["natural", "iid", "dirichlet"] = "natural"
    dirichlet_alpha: float = 0.5
    flipped_clients: float = 0.0
    allocation: Literal["ktoo", "ktor"] = "ktoo"
    allocation_seed: int = 2023
    eval_fraction: float = 0.25
    on_bad_row: Literal["error", "skip"] = "error"
    prompt_format: Literal["auto", "chat", "alpaca", "vicuna_v1.1", "none"] = "auto"


@dataclass(frozen=True)
class StrategyConfig:
    """The keys of `strategy` that every strategy obeys."""

    fraction_train: float = 1.0
    sampling: Literal["uniform", "weighted", "all", "openfedllm"] = "uniform"
    min_available_nodes: int = 2


@dataclass(frozen=True)
class FaultConfig:
    round_deadline_s: float = 3600.0
    min_replies: int = 1
    min_fraction: float = 0.0
    max_delta_norm: float = 1000.0
    max_examples: int = 100_000_000
    start_timeout_s: float = 300.0


@dataclass(frozen=True)
class EvalConfig:
    every: int = 1
    max_rows: int = 0
    prompts: str = ""
    benchmarks: str = ""


@dataclass(frozen=True)
class RlftConfig:
    epochs: int = 0
    steps: int = 0
    prompts: str = ""
    heldout: float = 0.25
    completions: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 64
    pairs: Literal["all", "best-worst"] = "all"
    vote: Literal["soft", "majority"] = "soft"
    labels: Literal["soft", "hard"] = "soft"
    min_confidence: float = 0.5
    learning_rate: float = 1e-3
    beta: float = 0.1
    batch_size: int = 8
    refresh_every: int = 0
    patience: int = 3
    policy: Literal["population", "clusters", "both"] = "population"
    policy_model: str = ""
    judge: Literal["auto", "truth", "pairs", "none"] = "auto"


@dataclass(frozen=True)
class ClientConfig:
    state_dir: str = ""


@dataclass(frozen=True)
class SiteConfig:
    mode: Literal["embedded", "resident"] = "embedded"
    wait_s: float = 60.0


@dataclass(frozen=True)
class Choice:
    """A plugin by name, with its own keys."""

    package: str
    name: str
    options: tuple[tuple[str, Scalar], ...]  # kebab case, sorted; a tuple so that a Config is hashable

    def build(self) -> Any:  # the contract of the package
        return build(self.package, self.name, dict(self.options))


@dataclass(frozen=True)
class Config:
    run: RunConfig
    model: ModelConfig
    lora: LoraConfig
    train: TrainConfig
    data: DataConfig
    strategy: StrategyConfig
    fault: FaultConfig
    eval: EvalConfig
    rlft: RlftConfig
    client: ClientConfig
    site: SiteConfig
    task_choice: Choice
    strategy_choice: Choice
    source_choice: Choice
    benchmarks: tuple[Choice, ...]
    judge: Choice | None  # the benchmark that judges the policy, for rlft.judge = pairs
    flat: tuple[tuple[str, Scalar], ...]  # every key as it ran, sorted; config.toml of a run

    def build_strategy(self) -> Any:  # strategies.base.Strategy
        """The strategy under lora.*; ConfigError where they do not fit."""
        return self.strategy_choice.build().under(self.lora)


SECTIONS: dict[str, type[Any]] = {
    "run": RunConfig,
    "model": ModelConfig,
    "lora": LoraConfig,
    "train": TrainConfig,
    "data": DataConfig,
    "strategy": StrategyConfig,
    "fault": FaultConfig,
    "eval": EvalConfig,
    "rlft": RlftConfig,
    "client": ClientConfig,
    "site": SiteConfig,
}
CHOOSERS = {  # section: the key that names its plugin, and their package
    "task": ("task.name", "tasks"),
    "strategy": ("strategy.name", "strategies"),
    "data": ("data.source", "tasks.data"),
}
POSITIVE = (
    "run.num-server-rounds", "lora.r", "lora.alpha", "train.learning-rate", "train.local-steps",
    "train.per-device-batch-size", "train.gradient-accumulation-steps", "train.max-length",
    "data.dirichlet-alpha", "strategy.min-available-nodes", "fault.round-deadline-s", "fault.min-replies",
    "fault.start-timeout-s", "fault.max-delta-norm", "fault.max-examples", "rlft.temperature",
    "rlft.max-new-tokens", "rlft.learning-rate", "rlft.beta", "rlft.batch-size",
)  # fmt: skip
NOT_NEGATIVE = (
    "model.cpu-threads",
    "train.min-learning-rate",
    "train.local-epochs",
    "train.total-epochs",
    "lora.residual-rank",
    "train.max-grad-norm",
    "train.weight-decay",
    "eval.every",
    "eval.max-rows",
    "rlft.epochs",
    "rlft.steps",
    "rlft.refresh-every",
    "rlft.patience",
    "site.wait-s",
)


@cache
def defaults() -> dict[str, Scalar]:
    """Every key and its default, from the page `[tool.flwr.app.config]` of pyproject.toml."""
    page = tomllib.loads(PAGE.read_text())["tool"]["flwr"]["app"]["config"]
    return flatten(page)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """Nested tables to dotted keys."""
    out: dict[str, Scalar] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def parse(flat: Mapping[str, Scalar]) -> Config:
    """The run config of Flower (fused with the page's defaults) to a Config.

    Raises ConfigError for an unknown key, a wrong type, a value out of range or an impossible
    combination, before anything is loaded.
    """
    page = defaults()
    values = dict(page)
    for key, value in flat.items():
        values[key] = checked(key, value)
    _check_ranges(values)
    choices = {
        section: _choose(section, [str(values[key])], values)[0] for section, (key, _) in CHOOSERS.items()
    }
    wanted = [name.strip() for name in str(values["eval.benchmarks"]).split(",") if name.strip()]
    judging = ["preference"] if values["rlft.judge"] == "pairs" else []
    evals = _choose("eval", list(dict.fromkeys(wanted + judging)), values)
    sections = {section: _section(cls, section, values) for section, cls in SECTIONS.items()}
    config = Config(
        **sections,
        task_choice=choices["task"],
        strategy_choice=choices["strategy"],
        source_choice=choices["data"],
        benchmarks=tuple(choice for choice in evals if choice.name in wanted),
        judge=next((choice for choice in evals if choice.name in judging), None),
        flat=tuple(sorted(values.items())),
    )
    _check_combinations(config)
    for choice in (*choices.values(), *evals):
        choice.build()  # a plugin checks its own values when it is made
    config.build_strategy()
    return config


def checked(key: str, value: Any) -> Scalar:  # Any: the outside world
    """`value` if `key` exists and takes its type; an int is accepted where a float is meant."""
    page = defaults()
    if key not in page:
        near = difflib.get_close_matches(key, page, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; `accord list` prints every key"
        raise ConfigError(f"unknown key {key!r}{hint}")
    want = type(page[key])
    if want is float and type(value) is int:
        return float(value)
    if type(value) is not want:
        raise ConfigError(f"{key} must be {want.__name__}, got {value!r} ({type(value).__name__})")
    return value


def _section(cls: type[Any], section: str, values: Mapping[str, Scalar]) -> Any:  # an instance of cls
    hints = get_type_hints(cls)
    options = {}
    for field in fields(cls):
        key = f"{section}.{field.name.replace('_', '-')}"
        value = values[key]
        if get_origin(hints[field.name]) is Literal and value not in get_args(hints[field.name]):
            raise ConfigError(
                f"{key} must be one of {' | '.join(get_args(hints[field.name]))}, got {value!r}"
            )
        options[field.name] = value
    return cls(**options)


def _choose(section: str, wanted: list[str], values: Mapping[str, Scalar]) -> list[Choice]:
    """The plugins named, each with its own keys; a key of the section that none of them reads must be untouched."""
    key, package = CHOOSERS.get(section, ("eval.benchmarks", "evals"))
    own: dict[str, dict[str, Scalar]] = {}
    for name in wanted:
        try:
            own[name] = knobs(plugin(package, name))
        except ConfigError as error:
            raise ConfigError(f"{key} = {name!r}: {error}") from error
    prefix = f"{section}."
    read = _read(section, own.values())
    for full, value in values.items():
        if full.startswith(prefix) and full not in read and value != defaults()[full]:
            mine = ", ".join(sorted(prefix + k for keys in own.values() for k in keys)) or "none"
            raise ConfigError(
                f"{full} = {value!r} has no effect with {key} = {', '.join(wanted)!r}, whose own keys are: {mine}"
            )
    return [
        Choice(package, name, tuple(sorted((short, values[prefix + short]) for short in keys)))
        for name, keys in own.items()
    ]


def _read(section: str, own: Iterable[Mapping[str, Scalar]]) -> set[str]:
    """The keys of a section that have an effect with plugins of these own keys."""
    key, _ = CHOOSERS.get(section, ("eval.benchmarks", "evals"))
    shared = {f.name.replace("_", "-") for f in fields(SECTIONS[section])} if section in SECTIONS else set()
    return {key} | {f"{section}.{short}" for short in shared | {k for keys in own for k in keys}}


def without_effect(chosen: Mapping[str, Scalar], keys: Iterable[str]) -> set[str]:
    """Those of `keys` that the plugins in `chosen` ({"strategy.name": ...}) ignore; ConfigError for an unknown one."""
    lost: set[str] = set()
    for section, (key, package) in CHOOSERS.items():
        if key in chosen:
            read = _read(section, [knobs(plugin(package, str(chosen[key])))])
            lost |= {k for k in keys if k.startswith(f"{section}.") and k not in read}
    return lost


def _check_ranges(values: Mapping[str, Scalar]) -> None:
    for key in POSITIVE:
        if not float(values[key]) > 0:
            raise ConfigError(f"{key} must be above 0, got {values[key]!r}")
    for key in NOT_NEGATIVE:
        if not float(values[key]) >= 0:
            raise ConfigError(f"{key} must not be negative, got {values[key]!r}")
    if not 0 < float(values["strategy.fraction-train"]) <= 1:
        raise ConfigError(
            f"strategy.fraction-train must be in (0, 1], got {values['strategy.fraction-train']!r}"
        )
    if not 0 <= float(values["fault.min-fraction"]) <= 1:
        raise ConfigError(f"fault.min-fraction must be in [0, 1], got {values['fault.min-fraction']!r}")
    if not 0 < float(values["rlft.top-p"]) <= 1:
        raise ConfigError(f"rlft.top-p must be in (0, 1], got {values['rlft.top-p']!r}")
    if not 0.5 <= float(values["rlft.min-confidence"]) < 1:
        raise ConfigError(f"rlft.min-confidence must be in [0.5, 1), got {values['rlft.min-confidence']!r}")
    if not 0 < float(values["rlft.heldout"]) < 1:
        raise ConfigError(f"rlft.heldout must be in (0, 1), got {values['rlft.heldout']!r}")
    if int(values["rlft.completions"]) < 2:
        raise ConfigError(f"rlft.completions must be at least 2, got {values['rlft.completions']!r}")
    for key in ("data.eval-fraction", "data.flipped-clients", "lora.dropout", "data.label-noise"):
        if not 0 <= float(values[key]) < 1:
            raise ConfigError(f"{key} must be in [0, 1), got {values[key]!r}")


def _check_combinations(config: Config) -> None:
    task, strategy, source = config.task_choice.name, config.strategy_choice.name, config.source_choice.name
    if config.fault.min_replies > config.strategy.min_available_nodes:
        raise ConfigError(
            f"fault.min-replies = {config.fault.min_replies} is above strategy.min-available-nodes = "
            f"{config.strategy.min_available_nodes}: a round could never close; lower the first or raise the second"
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
            f"data.prompt-format = {config.data.prompt_format!r} has no effect with task.name = {task!r}, whose "
            "prompts are its own"
        )
    _check_private(task, strategy)
    _check_train(config.train)
    _check_rlft(config)
    if config.train.optimizer_state == "keep" and config.lora.aggregation in ("flora", "flexlora"):
        raise ConfigError(
            f"train.optimizer-state = 'keep': with lora.aggregation = {config.lora.aggregation!r} A and B are others "
            "in every round, and the moments of the last ones are not theirs; use 'reset'"
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
            f"task.name = 'pdpo' gives every client parts of its own, which strategy.name = {strategy!r} does not know "
            "what to do with; use fedpdpo, fedavg, fedprox, local or a server optimiser"
        )
    if strategy == "fedpdpo" and task != "pdpo":
        raise ConfigError(
            f"strategy.name = 'fedpdpo' is for task.name = 'pdpo': with {task!r} a client has no parts of its own"
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
            "train.optimizer-state = 'keep': with strategy.name = 'fedbiscuit' a client trains one selector after "
            "another, and the moments of the last one are not theirs; use 'reset'"
        )


def _check_rlft(config: Config) -> None:
    rlft, strategy = config.rlft, config.strategy_choice.name
    if not rlft.epochs:
        if touched := [k for k, v in config.flat if k.startswith("rlft.") and v != defaults()[k]]:
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
            f"{config.lora.aggregation!r} what clients learn stays with them, and the server holds no judge of answers"
        )
    if config.data.flipped_clients and rlft.judge in ("auto", "truth"):
        raise ConfigError(
            f"rlft.judge = {rlft.judge!r} knows what clients want before data.flipped-clients = "
            f"{config.data.flipped_clients} turns it round; use pairs | none"
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
            f"train.local-epochs = {train.local_epochs} and train.total-epochs = {train.total_epochs} both say "
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
