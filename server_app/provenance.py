"""What produced a run: versions, code, task, strategy and seed, for its manifest."""

import hashlib
import os
import time
from importlib.metadata import version
from pathlib import Path

from core import __version__
from core.sections import Config
from core.types import Json

PACKAGES = ("flwr", "torch", "transformers", "peft", "trl", "datasets", "ray", "safetensors", "numpy")
ROOT = Path(__file__).parents[1]


def provenance(config: Config) -> Json:
    """Versions, code, task, strategy and seed of a run. Base model and data are added later, when they are known."""
    strategy: Json = {"name": config.strategy_choice.name}
    options, aggregation = dict(config.strategy_choice.options), config.lora.aggregation
    parts = [
        options.get("variant"),
        options.get("server-rule"),
        aggregation if aggregation != "separate" else "",
    ]
    if variant := ", ".join(str(part) for part in parts if part):
        strategy["variant"] = variant
    return {
        "accord": __version__,
        "versions": {p: version(p) for p in PACKAGES},
        "commit": os.environ.get("ACCORD_COMMIT") or None,
        "code": _code_fingerprint(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "task": config.task_choice.name,
        "strategy": strategy,
        "seed": config.run.seed,
        "rounds": config.run.num_server_rounds,
    }


def _code_fingerprint() -> str:
    """blake2b digest of the app's Python files."""
    digest = hashlib.blake2b(digest_size=16)
    for package in ("client_app", "core", "evals", "server_app", "strategies", "tasks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
