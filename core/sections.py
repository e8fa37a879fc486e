"""Config: a frozen dataclass for each section of pyproject.toml's configuration, and the chosen plugins."""

from dataclasses import dataclass
from typing import Any, Literal

from core.plugins import build
from core.types import Scalar


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
    learning_rate: float = 5e-4
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
    """The keys of `data` that every source obeys."""

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


# Keys, and sections with a dot at their end, that may differ when a run is resumed; a site's ledger allows them to
# change too. Of these, an answer of a client depends on run.num-server-rounds alone (schedules, the last round).
# eval.max-rows is not among them, since the scores of k and of k + 1 rows reveal a row.
RESUMABLE = (
    "run.resume", "run.dir", "run.num-server-rounds", "run.log-format", "client.state-dir", "site.", "fault.", "eval.",
    "rlft.",
)  # fmt: skip
PINNED = ("eval.max-rows",)


def may_change(key: str) -> bool:
    """Whether a key may have another value when a run is resumed."""
    return key.startswith(RESUMABLE) and key not in PINNED


@dataclass(frozen=True)
class Choice:
    """A plugin and the values of its options."""

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
    flat: tuple[tuple[str, Scalar], ...]  # every key with its value, sorted; a run's config.toml

    def build_strategy(self) -> Any:  # strategies.base.Strategy
        """Return the strategy with lora.* applied. Raises ConfigError if they cannot be combined."""
        return self.strategy_choice.build().with_lora(self.lora)


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
