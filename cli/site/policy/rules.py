"""A site's own policy: what a server may ask of it and what may leave it, read from the site's own file."""

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from client_app.claim import Claim
from core.errors import ConfigError, PolicyRefused
from core.files import read_toml
from core.sections import Config
from core.types import Scalar

ANY = "*"
MANY = 10**9
# What Accord's own tasks and strategies measure: means over a site's rows, sums of them, and seconds.
METRICS = (
    "loss", "loss/*", "nll", "kl", "ece", "accuracy", "accuracy/single_order", "order_consistency", "grad_norm",
    "learning_rate", "mean_token_accuracy", "rewards/*", "logps/*", "length/accuracies", "explicit/*", "combined/*",
    "race/scored", "vote/accuracy", "sum/kl_sum", "sum/kl_count", "seconds/*", "truth/*",
)  # fmt: skip
HASH = 8  # hex digits of a bundle's hash that Flower writes into the name of its folder, the least that is compared


@dataclass(frozen=True)
class Policy:
    """What one site allows. Without a word in the file it refuses; `open` turns that round, for tries."""

    open: bool = False  # what the file does not name is allowed, in any number; paths are not
    owners: tuple[str, ...] = (ANY,)  # accounts, as claimed
    apps: tuple[str, ...] = (ANY,)  # sha256 of bundles, as claimed
    tasks: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ()
    advise: bool = False  # consent to `accord advise`, which compares the sites' updates
    engines: tuple[str, ...] = ("accord",)
    models: tuple[tuple[str, str], ...] = ()  # name and fingerprint, which may be cut short; "": any content
    allow_bin: bool = False  # models that come as pickled files, which are converted without running them
    targets: tuple[str, ...] = ("all-linear", "auto")  # lora.target-modules
    sources: tuple[str, ...] = ("jsonl",)  # data.source
    paths: tuple[str, ...] = ()  # values that data.path and data.dataset may have besides ""
    max_runs: int = 5  # ever: the ledger beside the site's memory counts
    max_rounds: int = 50  # of one run
    max_total_rounds: int = 100  # of all runs, ever
    max_steps: int = 1000  # optimiser steps of a round, where a run counts steps
    max_epochs: float = 10.0  # passes over the rows in a round, where it counts those
    max_order_bytes: int = 256 << 20  # of an order's tensors
    min_rows: int = 20  # a training, a score or a comparison over fewer rows does not take place
    round_counts_to: int = 10  # counts of rows and tokens that leave are rounded down to a multiple
    updates: Literal["clear", "clipped", "noised"] = "clipped"  # how trees leave
    max_norm: float = 1.0  # L2 norm that a tree is scaled down to, unless clear
    noise_multiplier: float = 0.0  # noised: the noise's standard deviation in multiples of max-norm
    metrics: tuple[str, ...] = METRICS  # names or patterns of what may leave; others are dropped
    facts: tuple[str, ...] = ()  # of the hello, besides client, rows and base: census, data, skipped, truth

    @staticmethod
    def read(path: Path) -> "Policy":
        """Raises ConfigError for a file that is not there or no TOML, an unknown key, a wrong type or value."""
        page = read_toml(path)
        try:
            values = {key.replace("-", "_"): _checked(key, value) for key, value in page.items()}
            return Policy(**({**OPEN, **values} if values.get("open") else values))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def __post_init__(self) -> None:
        for name in ("max_runs", "max_rounds", "max_total_rounds", "max_steps", "max_epochs", "max_order_bytes",
                     "min_rows", "round_counts_to", "max_norm"):  # fmt: skip
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{_key(name)} must be above 0 and finite, got {getattr(self, name)!r}")
        if not 0 <= self.noise_multiplier < math.inf:
            raise ConfigError(
                f"noise-multiplier must be a finite number from 0, got {self.noise_multiplier!r}"
            )
        if self.round_counts_to > self.min_rows:
            raise ConfigError(
                f"round-counts-to = {self.round_counts_to} would round min-rows = {self.min_rows} down to no rows; "
                "lower the first or raise the second"
            )
        if (self.updates == "noised") != (self.noise_multiplier > 0):
            raise ConfigError(
                f"updates = {self.updates!r} and noise-multiplier = {self.noise_multiplier!r}: noise needs "
                "updates = 'noised' and a multiplier above 0"
            )
        if unknown := [fact for fact in self.facts if fact not in FACTS]:
            raise ConfigError(f"facts must be of {', '.join(FACTS)}, got {unknown[0]!r}")

    def admit(self, claim: Claim, config: Config) -> None:
        """Raises PolicyRefused for an asker or a configuration that this site does not serve."""
        reason = next((r for faults in (self._asker(claim), self._asked(config)) for r in faults), None)
        if reason:
            raise PolicyRefused(reason)

    def check_base(self, name: str, fingerprint: str) -> None:
        """Raises PolicyRefused for another base than the one of that name which the policy means."""
        meant = dict(self.models).get(name, dict(self.models).get(ANY, ""))
        if not fingerprint.startswith(meant):
            raise PolicyRefused(
                f"model.name = {shown(name)} is {fingerprint[:12]} here, this site's policy allows {meant[:12]}"
            )

    def check_files(self, name: str, *, pickled: bool) -> None:
        """Raises PolicyRefused for a model in pickled files where the policy wants safetensors."""
        if pickled and not self.allow_bin:
            raise PolicyRefused(
                f"model.name = {shown(name)} holds pickled weights (pytorch_model.bin); this site allows only "
                "safetensors (allow-bin = false)"
            )

    def lets_out(self, metric: str) -> bool:
        return any(fnmatchcase(metric, pattern) for pattern in self.metrics)

    def rounded(self, count: int) -> int:
        return count - count % self.round_counts_to

    def _asker(self, claim: Claim) -> Iterator[str]:
        if ANY not in self.owners and claim.owner not in self.owners:
            yield f"runs of {shown(claim.owner) if claim.owner else 'an unnamed owner'} are not served here"
        part = claim.app.rsplit(".", 1)[-1]
        known = len(part) >= HASH and any(app.startswith(part) for app in self.apps)
        if ANY not in self.apps and not known:
            yield f"the app {shown(part)} is not among the bundles that this site allows"

    def _asked(self, config: Config) -> Iterator[str]:
        keys = dict(config.flat)
        allowed = {
            "task.name": self.tasks,
            "strategy.name": (*self.strategies, *(("probe",) if self.advise else ())),
            "train.engine": self.engines,
            "model.name": tuple(dict(self.models)),
            "lora.target-modules": self.targets,
            "data.source": self.sources,
            "data.allocation": ("ktoo",),
        }
        for key, values in allowed.items():
            if ANY not in values and keys[key] not in values:
                yield f"{key} = {shown(keys[key])}; this site allows {', '.join(values) or 'none'}"
        for key, values in {
            "data.path": self.paths,
            "data.dataset": self.paths,
            "client.state-dir": (),
        }.items():
            if keys[key] not in ("", *values):
                yield f"{key} = {shown(keys[key])}: this site alone says what is read and written on its disk"
        if keys["strategy.name"] == "probe" and not self.advise:
            yield "strategy.name = 'probe': this site has not agreed to `accord advise`"
        for key, most in self._limits(config).items():
            if float(keys[key]) > most:
                yield f"{key} = {keys[key]!r}; this site allows {most:g}"

    def _limits(self, config: Config) -> Mapping[str, float]:
        by_epochs = config.train.local_epochs or config.train.total_epochs
        limits = {"run.num-server-rounds": self.max_rounds, "train.local-epochs": self.max_epochs}
        limits["train.total-epochs"] = self.max_epochs * self.max_rounds
        return limits if by_epochs else {**limits, "train.local-steps": self.max_steps}


FACTS = ("census", "data", "skipped", "truth")
OPEN: Mapping[str, Any] = {  # a field's type
    "tasks": (ANY,), "strategies": (ANY,), "advise": True, "engines": (ANY,), "models": ((ANY, ""),), "allow_bin": True,
    "targets": (ANY,),
    "sources": (ANY,), "max_runs": MANY, "max_rounds": MANY, "max_total_rounds": MANY, "max_steps": MANY,
    "max_epochs": float(MANY), "max_order_bytes": MANY << 10, "min_rows": 1, "round_counts_to": 1,
    "updates": "clear", "metrics": (ANY,), "facts": FACTS,
}  # fmt: skip


def shown(value: Scalar) -> str:
    """What a server wrote, for a line of ours: one line, not long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _key(name: str) -> str:
    return name.replace("_", "-")


def _checked(key: str, value: Any) -> Any:  # Any: what TOML holds; a field's type
    hints = get_type_hints(Policy)
    have = {_key(field.name): hints[field.name] for field in fields(Policy)}
    if key not in have:
        near = difflib.get_close_matches(key, have, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"have: {', '.join(have)}"
        raise ConfigError(f"unknown key {key!r} in a policy; {hint}")
    if key == "models":
        if isinstance(value, dict) and all(isinstance(mark, str) for mark in value.values()):
            return tuple(value.items())
        raise ConfigError(f'models must be a table of name = "fingerprint", got {value!r}')
    want, fits = have[key], type(value) is have[key]
    if get_origin(want) is Literal:
        want, fits = " | ".join(get_args(want)), value in get_args(want)
    elif get_origin(want) is tuple:
        want, fits = "a list of strings", isinstance(value, list) and all(isinstance(v, str) for v in value)
        value = tuple(value) if fits else value
    elif want is float and type(value) is int:
        return float(value)
    if not fits:
        raise ConfigError(f"{key} must be {getattr(want, '__name__', want)}, got {value!r}")
    return value
