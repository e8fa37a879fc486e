"""The checks that `accord doctor` makes on every machine; each prints one line."""

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil

from core.flower_patches import SERIES

ROOM = 2e9  # free bytes below which a disk for checkpoints or caches is noted
Verdict = Literal["ok", "note", "no"]


@dataclass(frozen=True)
class Check:
    """The result of a check. no: a run would fail. note: a run would not fail, but the user should know."""

    subject: str
    verdict: Verdict
    message: str

    def line(self) -> str:
        return f"{self.verdict:<6}{self.subject:<14}{self.message}"


def versions() -> Iterator[Check]:
    """The versions of Python, Flower and the libraries on which numerical results depend."""
    installed = {name: _version(name) for name in ("accord-fl", "flwr", "torch", "transformers", "peft")}
    message = f"python {platform.python_version()}, " + ", ".join(f"{n} {v}" for n, v in installed.items())
    if not installed["flwr"].startswith(f"{SERIES}."):
        message += (
            f"; needs flwr {SERIES}.*, the same on every machine: pip install 'flwr[simulation]=={SERIES}.*'"
        )
        yield Check("versions", "no", message)
    else:
        yield Check("versions", "ok", message)


def machine() -> Iterator[Check]:
    """Cores, memory, and the GPUs that torch sees, because torch runs the models."""
    import torch  # takes seconds to import

    memory = psutil.virtual_memory()
    yield Check(
        "machine",
        "ok",
        f"{os.cpu_count()} cores, {memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free",
    )
    for n in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(n)
        name = torch.cuda.get_device_name(n)
        yield Check("GPU", "ok", f"{n}: {name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
    if not torch.cuda.device_count():
        yield Check("GPU", "note", "torch sees no GPU; models run on the CPU")


def disk(subject: str, folder: Path) -> Check:
    """Whether `folder` can be written, and its free space; for a missing folder, those of its nearest parent."""
    place = next(p for p in (folder, *folder.parents) if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return Check(subject, "no", f"{folder} cannot be written by {_user()}")
    free = shutil.disk_usage(place).free
    message = f"{folder}, {free / 1e9:.1f} GB free"
    if free > ROOM:
        return Check(subject, "ok", message)
    return Check(subject, "note", f"{message}, which is little for checkpoints and caches")


def _user() -> str:
    return f"uid {os.getuid()}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
