"""What `accord doctor` looks at on every machine: one check, one line."""

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil

FLWR = "1.39."  # the line whose transport between server and sites is gRPC
ROOM = 2e9  # bytes on a disk that holds checkpoints or caches
Verdict = Literal["ok", "note", "no"]


@dataclass(frozen=True)
class Check:
    """no: a run will fail for this. note: it will not, but look at it."""

    what: str
    verdict: Verdict
    said: str

    def line(self) -> str:
        return f"{self.verdict:<6}{self.what:<14}{self.said}"


def versions() -> Iterator[Check]:
    """Python, Flower, and the libraries that decide about numbers."""
    found = {name: _version(name) for name in ("accord-fl", "flwr", "torch", "transformers", "peft")}
    told = f"python {platform.python_version()}, " + ", ".join(f"{n} {v}" for n, v in found.items())
    if not found["flwr"].startswith(FLWR):
        told += f"; flwr {FLWR}* is needed, and the same on every machine: pip install 'flwr[simulation]=={FLWR}*'"
        yield Check("versions", "no", told)
    else:
        yield Check("versions", "ok", told)


def machine() -> Iterator[Check]:
    """Cores, memory and GPUs; torch is asked for the GPUs, since the model will be."""
    import torch  # seconds

    gib = psutil.virtual_memory()
    yield Check(
        "machine", "ok", f"{os.cpu_count()} cores, {gib.available / 1e9:.1f} of {gib.total / 1e9:.1f} GB free"
    )
    for n in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(n)
        name = torch.cuda.get_device_name(n)
        yield Check("GPU", "ok", f"{n}: {name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
    if not torch.cuda.device_count():
        yield Check("GPU", "note", "torch sees none: models run on the CPU")


def disk(what: str, folder: Path) -> Check:
    """Whether one can write there, and how much; a folder that is not there yet is judged by what holds it."""
    place = next(p for p in (folder, *folder.parents) if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return Check(what, "no", f"{folder} cannot be written by {_user()}")
    free = shutil.disk_usage(place).free
    told = f"{folder}, {free / 1e9:.1f} GB free"
    return (
        Check(what, "ok", told)
        if free > ROOM
        else Check(what, "note", f"{told}: little for checkpoints and caches")
    )


def _user() -> str:
    return f"uid {os.getuid()}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
