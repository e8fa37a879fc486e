"""Parse the configuration once into a frozen Config; no other code reads string keys."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from core.combinations import check_combinations
from core.errors import ConfigError
from core.plugins import default_options, names, plugin
from core.sections import SECTIONS, Choice, Config
from core.tables import did_you_mean, typed
from core.types import Scalar

PAGE = Path(__file__).parents[1] / "pyproject.toml"
CHOOSERS = {  # section: the key that names its plugin, and their package
    "task": ("task.name", "tasks"),
    "strategy": ("strategy.name", "strategies"),
    "data": ("data.source", "tasks.data"),
}
LIMIT = 2**63  # of numbers: Flower sends 64-bit integers
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
    """Return every key and its default, from the table `[tool.flwr.app.config]` of pyproject.toml."""
    page = tomllib.loads(PAGE.read_text())["tool"]["flwr"]["app"]["config"]
    return flatten(page)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """Flatten nested tables to dotted keys."""
    out: dict[str, Scalar] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def parse(flat: Mapping[str, Scalar]) -> Config:
    """Return the Config of a flat configuration, with defaults for absent keys.

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
    if missing := {key: value for key, value in recommended_values(values).items() if not values[key]}:
        values |= missing
        choices["task"] = _choose("task", [str(values["task.name"])], values)[0]
    benchmarks = [name.strip() for name in str(values["eval.benchmarks"]).split(",") if name.strip()]
    judges = _judges(str(values["rlft.judge"])) if values["rlft.judge"] != page["rlft.judge"] else []
    evals = _choose("eval", list(dict.fromkeys(benchmarks + judges)), values)
    sections = {section: _section(cls, section, values) for section, cls in SECTIONS.items()}
    config = Config(
        **sections,
        task_choice=choices["task"],
        strategy_choice=choices["strategy"],
        source_choice=choices["data"],
        benchmarks=tuple(choice for choice in evals if choice.name in benchmarks),
        judge=next((choice for choice in evals if choice.name in judges), None),
        flat=tuple(sorted(values.items())),
    )
    check_combinations(config, page)
    for choice in (*choices.values(), *evals):
        choice.build()  # a plugin checks its own values at construction
    config.build_strategy().check_participation(config.strategy)
    return config


def _judges(judge: str) -> list[str]:
    """Return the benchmarks that a value of rlft.judge stands for."""
    return [name for name in names("evals") if getattr(plugin("evals", name), "judge", "") == judge]


def recommended_values(values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return what 0 stands for in the task's recommended_options: the data source's value, else the task's default.

    values: every key; the plugins that they name must exist.
    """
    task = plugin("tasks", str(values["task.name"]))
    defaults_of_task = default_options(task)
    of_source = vars(plugin("tasks.data", str(values["data.source"]))).get("RECOMMENDED", {})
    return {
        f"task.{name}": of_source.get(f"task.{name}", defaults_of_task[name])
        for name in task.recommended_options
    }


def checked(key: str, value: Any) -> Scalar:  # Any: unchecked input
    """Return `value`; an int becomes a float for a float key. Raises ConfigError for an unknown key or a wrong type."""
    page = defaults()
    if key not in page:
        hint = did_you_mean(key, page) or "`accord list` prints every key"
        raise ConfigError(f"unknown key {key!r}; {hint}")
    want = type(page[key])
    if want in (int, float) and type(value) in (int, float) and not abs(value) < LIMIT:
        raise ConfigError(f"{key} must be a finite number of magnitude below 2^63, got {value!r}")
    return typed(key, value, want)


def _section(cls: type[Any], section: str, values: Mapping[str, Scalar]) -> Any:  # an instance of cls
    hints = get_type_hints(cls)
    options = {}
    for field in fields(cls):
        key = f"{section}.{field.name.replace('_', '-')}"
        options[field.name] = typed(key, values[key], hints[field.name])
    return cls(**options)


def _choose(section: str, plugins: list[str], values: Mapping[str, Scalar]) -> list[Choice]:
    """Return the named plugins with their options.

    Raises ConfigError for an unknown plugin, and for a key of the section that was changed but that none of them reads.
    """
    key, package = CHOOSERS.get(section, ("eval.benchmarks", "evals"))
    options_of: dict[str, dict[str, Scalar]] = {}
    for name in plugins:
        try:
            options_of[name] = default_options(plugin(package, name))
        except ConfigError as error:
            raise ConfigError(f"{key} = {name!r}: {error}") from error
    prefix = f"{section}."
    read = _keys_read(section, options_of.values())
    for full, value in values.items():
        if full.startswith(prefix) and full not in read and value != defaults()[full]:
            available = ", ".join(sorted(prefix + k for keys in options_of.values() for k in keys)) or "none"
            raise ConfigError(
                f"{full} = {value!r} has no effect with {key} = {', '.join(plugins)!r}, whose keys are: {available}"
            )
    return [
        Choice(package, name, tuple(sorted((short, values[prefix + short]) for short in keys)))
        for name, keys in options_of.items()
    ]


def _keys_read(section: str, options: Iterable[Mapping[str, Scalar]]) -> set[str]:
    """Return the full keys of a section that plugins with these options read."""
    key, _ = CHOOSERS.get(section, ("eval.benchmarks", "evals"))
    shared = {f.name.replace("_", "-") for f in fields(SECTIONS[section])} if section in SECTIONS else set()
    return {key} | {f"{section}.{short}" for short in shared | {k for keys in options for k in keys}}


def without_effect(chosen: Mapping[str, Scalar], keys: Iterable[str]) -> set[str]:
    """Return those of `keys` that the plugins in `chosen` ({"strategy.name": ...}) ignore.

    Raises ConfigError for an unknown plugin.
    """
    ignored: set[str] = set()
    for section, (key, package) in CHOOSERS.items():
        if key in chosen:
            read = _keys_read(section, [default_options(plugin(package, str(chosen[key])))])
            ignored |= {k for k in keys if k.startswith(f"{section}.") and k not in read}
    return ignored


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
    for key in ("data.eval-fraction", "data.flipped-clients", "lora.dropout"):
        if not 0 <= float(values[key]) < 1:
            raise ConfigError(f"{key} must be in [0, 1), got {values[key]!r}")
