"""Several processes of one site train together: each sees its part of every batch, and gradients are summed.

Only the adapter learns, so what they exchange is as small as it is. One process is a crew of one, and does without.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(minutes=10)  # for the others in a step
FOREVER = timedelta(days=365)  # a site may wait that long for its next message
_waiting: list[
    dist.ProcessGroup
] = []  # the group in which the others wait for the leader's word; none in a crew of one


def join() -> None:
    """Become one of the processes that `accelerate launch` or `torchrun` started; alone, nothing happens."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    from accelerate import PartialState  # slow to import

    PartialState(
        cpu=not torch.cuda.is_available(), timeout=PATIENCE
    )  # gloo on CPU, nccl on CUDA, and each process its GPU
    group = dist.new_group(backend="gloo", timeout=FOREVER)
    assert isinstance(group, dist.ProcessGroup), group
    _waiting.append(group)


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def leads() -> bool:
    """Whether this process answers for its site; the others only train with it, and write nothing."""
    return rank() == 0


def part(rows: Sequence[T]) -> Sequence[T]:
    """This process's consecutive share, by at most one row more or less than another's; it may be empty."""
    cut = [len(rows) * n // size() for n in (rank(), rank() + 1)]
    return rows[cut[0] : cut[1]]


def add(tensors: Sequence[Tensor]) -> None:
    """Sum over the processes, in place."""
    if size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def gather(value: T) -> list[T]:
    """Everyone's value, in order of rank, at every process."""
    if size() == 1:
        return [value]
    out: list[T] = [value] * size()
    dist.all_gather_object(out, value)
    return out


def told(value: T | None = None) -> T:
    """The leader's value, at every process; the others wait for it."""
    box = [value]
    if size() > 1:
        dist.broadcast_object_list(box, src=0, group=_waiting[0])
    assert box[0] is not None, "the leader has something to tell"
    return box[0]
