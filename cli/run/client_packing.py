"""How many simulated clients run at the same time on this machine, by its cores, GPUs and the memory of a client."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil

import psutil

from cli.run.footprint import Estimate, Shape, estimate, shape_of
from core.devices import check_device, wants_cuda
from core.sections import Config, ModelConfig
from core.types import Scalar
from server_app.report.formatting import counted, size

SPARE = 0.9  # share of the free memory that clients may take
QUERY = ["--query-gpu=index,uuid,memory.free", "--format=csv,noheader,nounits"]  # MiB
VISIBLE = "CUDA_VISIBLE_DEVICES"  # torch and Ray obey it


@dataclass(frozen=True)
class Machine:
    """A machine's resources: cores, free bytes of memory, free bytes of each GPU."""

    cores: int
    memory: float
    gpus: tuple[float, ...] = ()


@dataclass(frozen=True)
class Packing:
    """at_once: the clients that run at the same time. share: the fraction of a GPU that each of them gets."""

    at_once: int
    share: float


def this_machine() -> Machine:
    """The resources of this machine, with the GPUs that torch may use.

    GPUs are read from nvidia-smi, because asking torch would create a CUDA context in this process.
    """
    gpus: tuple[float, ...] = ()
    if tool := shutil.which("nvidia-smi"):
        query = subprocess.run([tool, *QUERY], capture_output=True, text=True)
        gpus = () if query.returncode else visible_gpus(query.stdout, os.environ.get(VISIBLE))
    return Machine(os.cpu_count() or 1, psutil.virtual_memory().available, gpus)


def visible_gpus(table: str, visible: str | None) -> tuple[float, ...]:
    """Free bytes of each GPU that CUDA_VISIBLE_DEVICES leaves visible.

    Args:
        table: The output of nvidia-smi for QUERY.
        visible: CUDA_VISIBLE_DEVICES: indices or prefixes of UUIDs; None if it is not set. As in CUDA, the first entry
            that matches no GPU ends the list.
    """
    gpus = [[cell.strip() for cell in line.split(",")] for line in table.splitlines() if line.count(",") == 2]
    free = [(index, uuid, float(mib) * 2**20) for index, uuid, mib in gpus if mib.isdecimal()]
    if visible is None:
        return tuple(size for _, _, size in free)
    sizes = []
    for entry in visible.split(","):
        name = entry.strip()
        matches = [size for index, uuid, size in free if name and (name == index or uuid.startswith(name))]
        if not matches:
            break
        sizes.append(matches[0])
    return tuple(sizes)


def check_this_device(model: ModelConfig, machine: Machine) -> None:
    """Raise ConfigError for a device or dtype that this machine cannot run.

    torch decides which GPUs can be used. It takes seconds to import, so it is imported only if the model needs a GPU
    or float16.
    """
    gpus = len(machine.gpus)
    if wants_cuda(model) or (model.dtype == "float16" and model.device != "cpu"):
        import torch

        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    check_device(model, gpus)


def pack(config: Config, federation: Mapping[str, Scalar], machine: Machine) -> tuple[Packing, list[str]]:
    """How many clients run at the same time, and lines that explain it.

    A model of unknown size is packed by cores alone, and with one client per GPU.
    """
    shape = _shape(config.model)
    client = estimate(config, shape) if shape else None
    gpus = machine.gpus if config.model.device != "cpu" else ()
    at_once, share = int(machine.cores / float(federation["client-cpus"])), float(federation["client-gpus"])
    clients = int(federation["num-supernodes"])
    if gpus:
        clients_per_gpu = int(SPARE * min(gpus) / client.total) if client else 1
        wanted = ceil(clients / len(gpus))
        share = share or _share(max(1, min(clients_per_gpu, at_once // len(gpus), wanted)))
        at_once = min(at_once, int(len(gpus) / share + 1e-6))  # 1e-6: a quotient of floats may be just below
    elif client:
        server = client.base + client.process  # the ServerApp loads the base model too
        at_once = min(at_once, int((SPARE * machine.memory - server) / client.total))
    at_once = min(max(1, at_once), clients)
    return Packing(at_once, share), _explanation(client, at_once, gpus, machine)


def base_bytes(config: Config) -> float:
    """The bytes that the base model takes in memory; infinity for a model of unknown size."""
    shape = _shape(config.model)
    return estimate(config, shape).base if shape else float("inf")


@cache
def _shape(model: ModelConfig) -> Shape | None:
    return shape_of(model)


def _explanation(
    client: Estimate | None, at_once: int, gpus: tuple[float, ...], machine: Machine
) -> list[str]:
    where = f"{counted(machine.cores, 'core')} with {size(machine.memory)} free"
    if gpus:
        where = f"{counted(len(gpus), 'GPU')} with {size(min(gpus))} free each"
    if client is None:
        return [f"memory   the memory that a client takes is unknown; {at_once} at a time on {where}"]
    lines = [
        f"memory   a client takes up to {size(client.total)} (base {size(client.base)}, a step {size(client.step)}); "
        f"{at_once} at a time on {where}"
    ]
    if client.total > SPARE * (min(gpus) if gpus else machine.memory):
        lines.append(
            "         this may be too much: lower train.per-device-batch-size or train.max-length, or set "
            "model.gradient-checkpointing=true"
        )
    return lines


def _share(clients: int) -> float:
    """The fraction of a GPU for each of `clients`, rounded down: Ray rejects shares whose sum is above 1."""
    return int(10_000 / clients) / 10_000
