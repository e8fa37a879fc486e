"""Data-parallel training in several processes of one site: each takes a part of every batch, and gradients are summed.

Only gradients of the adapter are exchanged. With one process, every function here is a no-op or the identity.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
STEP_TIMEOUT = timedelta(minutes=10)  # of a collective operation during training
MESSAGE_TIMEOUT = timedelta(days=365)  # of broadcast(): a site may idle that long between two messages
# The process group of broadcast(); empty with one process.
_broadcast_group: list[dist.ProcessGroup] = []


def join() -> None:
    """Join the processes that `accelerate launch` or `torchrun` started; does nothing if WORLD_SIZE is unset or 1."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    from accelerate import PartialState  # slow to import

    # gloo on the CPU, nccl on CUDA; assigns one GPU to each process
    PartialState(cpu=not torch.cuda.is_available(), timeout=STEP_TIMEOUT)
    group = dist.new_group(backend="gloo", timeout=MESSAGE_TIMEOUT)
    assert isinstance(group, dist.ProcessGroup), group
    _broadcast_group.append(group)


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_leader() -> bool:
    """Whether this process answers for its site; the other processes only train and write no files."""
    return rank() == 0


def part(rows: Sequence[T]) -> Sequence[T]:
    """This process's consecutive part of the rows. Sizes differ by at most one row; a part may be empty."""
    start, stop = (len(rows) * n // size() for n in (rank(), rank() + 1))
    return rows[start:stop]


def all_reduce(tensors: Sequence[Tensor]) -> None:
    """Sum each tensor over the processes, in place."""
    if size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def gather(value: T) -> list[T]:
    """The values of all processes in order of rank, at every process."""
    if size() == 1:
        return [value]
    out: list[T] = [value] * size()
    dist.all_gather_object(out, value)
    return out


def broadcast(value: T | None = None) -> T:
    """The leader's value, at every process. Other processes call it without an argument and wait."""
    values = [value]
    if size() > 1:
        dist.broadcast_object_list(values, src=0, group=_broadcast_group[0])
    assert values[0] is not None, "the leader must pass a value to broadcast()"
    return values[0]
