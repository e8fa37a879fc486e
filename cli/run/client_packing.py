"""How many simulated clients run at a time on this machine: by cores, GPUs and what one of them takes."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil

import psutil

from core.devices import check_device, wants_cuda
from core.sections import Config, ModelConfig
from core.types import Scalar
from server_app.report.formatting import counted, size
from tasks.model.footprint import Estimate, Shape, estimate, shape_of

SPARE = 0.9  # share of the free memory that is given away
QUERY = ["--query-gpu=index,uuid,memory.free", "--format=csv,noheader,nounits"]  # MiB
VISIBLE = "CUDA_VISIBLE_DEVICES"  # what torch and Ray go by


@dataclass(frozen=True)
class Machine:
    """What there is: cores, free bytes of memory, free bytes of each GPU."""

    cores: int
    memory: float
    gpus: tuple[float, ...] = ()


@dataclass(frozen=True)
class Packing:
    """at_once: clients that run at a time. share: of a GPU, that each of them has."""

    at_once: int
    share: float


def this_machine() -> Machine:
    """GPUs as nvidia-smi reports them, so that this process makes no CUDA context; those that torch may use."""
    found: tuple[float, ...] = ()
    if tool := shutil.which("nvidia-smi"):
        done = subprocess.run([tool, *QUERY], capture_output=True, text=True)
        found = () if done.returncode else visible_gpus(done.stdout, os.environ.get(VISIBLE))
    return Machine(os.cpu_count() or 1, psutil.virtual_memory().available, found)


def visible_gpus(table: str, visible: str | None) -> tuple[float, ...]:
    """Free bytes of each GPU of nvidia-smi's table that CUDA_VISIBLE_DEVICES leaves visible.

    It holds indices or the beginnings of UUIDs; as CUDA does, the first entry that is no GPU ends the list.
    """
    gpus = [[cell.strip() for cell in line.split(",")] for line in table.splitlines() if line.count(",") == 2]
    free = [(index, uuid, float(mib) * 2**20) for index, uuid, mib in gpus if mib.isdecimal()]
    if visible is None:
        return tuple(size for _, _, size in free)
    out = []
    for entry in visible.split(","):
        name = entry.strip()
        found = [size for index, uuid, size in free if name and (name == index or uuid.startswith(name))]
        if not found:
            break
        out.append(found[0])
    return tuple(out)


def check_this_device(model: ModelConfig, machine: Machine) -> None:
    """Raise ConfigError for a device or dtype that this machine cannot run.

    torch is imported, for seconds, only where a GPU or float16 is asked for: it has the last word on what it sees.
    """
    gpus = len(machine.gpus)
    if wants_cuda(model) or (model.dtype == "float16" and model.device != "cpu"):
        import torch

        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    check_device(model, gpus)


def pack(config: Config, federation: Mapping[str, Scalar], machine: Machine) -> tuple[Packing, list[str]]:
    """How many at a time, and what to tell of it.

    A model of which nothing is known is packed by cores alone, on GPUs one client each.
    """
    shape = _shape(config.model)
    one = estimate(config, shape) if shape else None
    gpus = machine.gpus if config.model.device != "cpu" else ()
    at_once, share = int(machine.cores / float(federation["client-cpus"])), float(federation["client-gpus"])
    clients = int(federation["num-supernodes"])
    if gpus:
        fit = int(SPARE * min(gpus) / one.total) if one else 1
        wanted = ceil(clients / len(gpus))
        share = share or _share(max(1, min(fit, at_once // len(gpus), wanted)))
        at_once = min(at_once, int(len(gpus) / share + 1e-6))
    elif one:
        server = one.base + one.process
        at_once = min(at_once, int((SPARE * machine.memory - server) / one.total))
    at_once = min(max(1, at_once), clients)
    return Packing(at_once, share), _told(one, at_once, gpus, machine)


def base_bytes(config: Config) -> float:
    """What the base model takes in memory; infinity for a model of which nothing is known."""
    shape = _shape(config.model)
    return estimate(config, shape).base if shape else float("inf")


@cache
def _shape(model: ModelConfig) -> Shape | None:
    return shape_of(model)


def _told(one: Estimate | None, at_once: int, gpus: tuple[float, ...], machine: Machine) -> list[str]:
    where = f"{counted(machine.cores, 'core')} with {size(machine.memory)} free"
    if gpus:
        where = f"{counted(len(gpus), 'GPU')} with {size(min(gpus))} free each"
    if one is None:
        return [f"memory   what a client takes is unknown; {at_once} at a time on {where}"]
    lines = [
        f"memory   a client takes up to {size(one.total)} (base {size(one.base)}, a step {size(one.step)}); "
        f"{at_once} at a time on {where}"
    ]
    if one.total > SPARE * (min(gpus) if gpus else machine.memory):
        lines.append(
            "         that may be too much: lower train.per-device-batch-size or train.max-length, or set "
            "model.gradient-checkpointing=true"
        )
    return lines


def _share(clients: int) -> float:
    """A GPU's share of so many clients, rounded down: Ray must not find their sum above 1."""
    return int(10_000 / clients) / 10_000
