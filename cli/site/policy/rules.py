"""Policy: what a server may ask of a site and what may leave it, from the site's own file policy.toml."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from client_app.claim import Claim
from core.errors import ConfigError, PolicyRefused
from core.files import read_toml
from core.sections import Config
from core.tables import read_values
from core.types import Scalar

ANY = "*"
UNLIMITED = 10**9
MIN_HASH_DIGITS = 8  # hex digits of a bundle's hash that Flower writes into the name of its folder


@dataclass(frozen=True)
class Policy:
    """What a site allows. An empty file denies every run; `open = true` reverses the defaults, for experiments."""

    open: bool = False  # true: whatever the file does not restrict is allowed, without limits, except paths
    owners: tuple[str, ...] = (ANY,)  # accounts, as the message claims
    apps: tuple[str, ...] = (ANY,)  # sha256 of bundles, as the message claims
    tasks: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ()
    advise: bool = False  # whether `accord advise` may compare this site's updates with others
    engines: tuple[str, ...] = ("accord",)
    models: tuple[tuple[str, str], ...] = ()  # name and fingerprint or its first digits; "": any fingerprint
    allow_bin: bool = False  # allow models in pickled files; these are converted without running them
    targets: tuple[str, ...] = ("all-linear", "auto")  # lora.target-modules
    sources: tuple[str, ...] = ("jsonl",)  # data.source
    paths: tuple[str, ...] = ()  # allowed values of data.path and data.dataset besides ""
    max_runs: int = 5  # in all, as counted by the ledger
    max_rounds: int = 50  # per run
    max_total_rounds: int = 100  # of all runs together
    max_steps: int = 1000  # optimiser steps per round, if a run is configured in steps
    max_epochs: float = 10.0  # passes over the rows per round, if it is configured in epochs
    max_order_bytes: int = 256 << 20  # size of an order's tensors
    min_rows: int = 20  # a training, score or comparison over fewer rows is refused
    round_counts_to: int = 10  # counts of rows and tokens that leave are rounded down to a multiple
    updates: Literal["clear", "clipped", "noised"] = "clipped"  # how updates are protected before they leave
    max_norm: float = 1.0  # largest L2 norm of a tree, unless updates = "clear"
    noise_multiplier: float = 0.0  # for "noised": standard deviation of the noise in multiples of max-norm
    metrics: tuple[str, ...] = (
        ANY,
    )  # which of the metrics that task and strategy declare may leave; patterns
    facts: tuple[str, ...] = ()  # extra facts in the hello: row-counts, data, skipped, truth

    @staticmethod
    def read(path: Path) -> "Policy":
        """Read a policy file. Raises ConfigError if it is missing, not TOML, or has an unknown key or wrong value."""
        document = read_toml(path)
        try:
            values = read_values(Policy, document)
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
                f"noise-multiplier must be a finite number of at least 0, got {self.noise_multiplier!r}"
            )
        if self.round_counts_to > self.min_rows:
            raise ConfigError(
                f"round-counts-to = {self.round_counts_to} would round min-rows = {self.min_rows} down to 0; "
                "lower the first or raise the second"
            )
        if (self.updates == "noised") != (self.noise_multiplier > 0):
            raise ConfigError(
                f"updates = {self.updates!r} and noise-multiplier = {self.noise_multiplier!r}: set "
                "updates = 'noised' with a multiplier above 0, or neither"
            )
        if unknown := [fact for fact in self.facts if fact not in FACTS]:
            raise ConfigError(f"facts must be among {', '.join(FACTS)}, got {unknown[0]!r}")

    def admit(self, claim: Claim, config: Config) -> None:
        """Raise PolicyRefused if this site does not serve the claimed origin or the configuration."""
        problems = chain(self._origin_problems(claim), self._config_problems(config))
        reason = next(problems, None)
        if reason:
            raise PolicyRefused(reason)

    def check_base(self, name: str, fingerprint: str) -> None:
        """Raise PolicyRefused if the base model of this name has another fingerprint than the policy allows."""
        allowed = dict(self.models).get(name, dict(self.models).get(ANY, ""))
        if not fingerprint.startswith(allowed):
            raise PolicyRefused(
                f"model.name = {quote(name)} has fingerprint {fingerprint[:12]} here; this site allows {allowed[:12]}"
            )

    def check_files(self, name: str, *, pickled: bool) -> None:
        """Raise PolicyRefused for a model in pickled files unless allow-bin is set."""
        if pickled and not self.allow_bin:
            raise PolicyRefused(
                f"model.name = {quote(name)} holds pickled weights (pytorch_model.bin); this site allows only "
                "safetensors (allow-bin = false)"
            )

    def allows_metric(self, metric: str) -> bool:
        return any(fnmatchcase(metric, pattern) for pattern in self.metrics)

    def rounded(self, count: int) -> int:
        return count - count % self.round_counts_to

    def _origin_problems(self, claim: Claim) -> Iterator[str]:
        if ANY not in self.owners and claim.owner not in self.owners:
            owner = quote(claim.owner) if claim.owner else "an unnamed owner"
            yield f"this site's policy does not serve runs of {owner}"
        digest = claim.app.rsplit(".", 1)[-1]
        is_listed = len(digest) >= MIN_HASH_DIGITS and any(app.startswith(digest) for app in self.apps)
        if ANY not in self.apps and not is_listed:
            yield f"app {quote(digest)} is not among the bundles that this site's policy allows"

    def _config_problems(self, config: Config) -> Iterator[str]:
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
                yield f"{key} = {quote(keys[key])}; this site allows {', '.join(values) or 'none'}"
        for key, values in {
            "data.path": self.paths,
            "data.dataset": self.paths,
            "client.state-dir": (),
        }.items():
            if keys[key] not in ("", *values):
                yield f"{key} = {quote(keys[key])}: only this site decides what is read and written on its disk"
        if keys["strategy.name"] == "probe" and not self.advise:
            yield "strategy.name = 'probe': this site's policy does not allow `accord advise` (advise = false)"
        for key, limit in self._limits(config).items():
            if float(keys[key]) > limit:
                yield f"{key} = {keys[key]!r}; this site allows at most {limit:g}"

    def _limits(self, config: Config) -> Mapping[str, float]:
        by_epochs = config.train.local_epochs or config.train.total_epochs
        limits = {"run.num-server-rounds": self.max_rounds, "train.local-epochs": self.max_epochs}
        limits["train.total-epochs"] = self.max_epochs * self.max_rounds
        limits |= {"strategy.personal-steps": self.max_steps, "strategy.finish-steps": self.max_steps}
        return limits if by_epochs else {**limits, "train.local-steps": self.max_steps}


FACTS = ("row-counts", "data", "skipped", "truth")
OPEN: Mapping[str, Any] = {  # the defaults with `open = true`
    "tasks": (ANY,), "strategies": (ANY,), "advise": True, "engines": (ANY,), "models": ((ANY, ""),), "allow_bin": True,
    "targets": (ANY,), "sources": (ANY,),
    "max_runs": UNLIMITED, "max_rounds": UNLIMITED, "max_total_rounds": UNLIMITED, "max_steps": UNLIMITED,
    "max_epochs": float(UNLIMITED), "max_order_bytes": UNLIMITED << 10, "min_rows": 1, "round_counts_to": 1,
    "updates": "clear", "facts": FACTS,
}  # fmt: skip


def quote(value: Scalar) -> str:
    """Quote a value that a server sent, for a message: on one line, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _key(name: str) -> str:
    return name.replace("_", "-")
