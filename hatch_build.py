"""Put the app into the wheel: what `flwr run .` takes from a checkout lies in `accord/_app` there.

So site-packages get one package, and no name as general as `core` or `tasks`.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

APP = [
    "LICENSE", "cli", "client_app", "core", "evals", "presets", "pyproject.toml", "server_app", "strategies", "tasks",
]  # fmt: skip


class AppHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """version: "standard", or "editable", where the checkout itself is the app."""
        if version == "standard":
            build_data["force_include"] = {str(Path(self.root) / name): f"accord/_app/{name}" for name in APP}
