"""Time the aggregation of N adapters of 4.2 M float32 numbers, compared with flwr's own.

Each side and size runs in a separate process, and sides take turns. Accord takes replies as its round loop does
(decode, check, fold); flwr's `aggregate_arrayrecords` takes the list of replies that its strategies hold.
glibc allocates arrays of 128 KiB or more in fresh pages, which takes longer than computing with them, until the process
has freed a larger array: "fresh" fixes that threshold, "raised" sets it to the value after large frees.
"""

import argparse
import json
import os
import resource
import statistics
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NUMBERS, TENSORS = 4_194_304, 128  # LoRA of rank 8 on q and v of a 7B Llama: 16.8 MB
SIDES = ("flwr", "flwr-flat", "accord")
ALLOCATORS = {"fresh": str(128 << 10), "raised": str(32 << 20)}  # MALLOC_MMAP_THRESHOLD_


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 300])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--allocators", nargs="+", default=list(ALLOCATORS), choices=ALLOCATORS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.clients[0], args.threads)))
        return
    print(f"{NUMBERS} float32 numbers a client, {args.repeats} repeats, {args.threads} thread(s)\n")
    print(
        "| allocator | clients | side | CPU ms | wall ms | against flwr | peak memory above the start, adapters |"
    )
    print("|---|---|---|---|---|---|---|")
    for allocator in args.allocators:
        for clients in args.clients:
            compare(allocator, clients, args.repeats, args.threads)


def compare(allocator: str, clients: int, repeats: int, threads: int) -> None:
    """Run all sides in turn and print their medians."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side in SIDES:
            runs[side].append(child(side, clients, threads, allocator))
    assert abs(runs["accord"][0]["sample"] - runs["flwr"][0]["sample"]) < 1e-6, "the sides disagree"
    medians = {
        side: {key: statistics.median(r[key] for r in runs[side]) for key in ("cpu", "wall", "memory")}
        for side in SIDES
    }
    for side, m in medians.items():
        times = f"{m['cpu']:.0f} | {m['wall']:.0f} | {medians['flwr']['cpu'] / m['cpu']:.1f}"
        print(f"| {allocator} | {clients} | {side} | {times} | {m['memory']:.1f} |", flush=True)


def child(side: str, clients: int, threads: int, allocator: str) -> dict[str, Any]:
    command = [
        sys.executable, __file__, "--side", side, "--clients", str(clients), "--threads", str(threads),
    ]  # fmt: skip
    settings = {"OMP_NUM_THREADS": str(threads), "MALLOC_MMAP_THRESHOLD_": ALLOCATORS[allocator]}
    env = {**os.environ, **settings, "PYTHONPATH": str(ROOT)}
    return json.loads(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)


def measure(side: str, clients: int, threads: int) -> dict[str, Any]:
    """CPU and wall milliseconds of the aggregation, and peak memory above that of the process before."""
    import torch

    torch.set_num_threads(threads)
    aggregate = {"flwr": flwrs, "flwr-flat": flwrs_flat, "accord": ours}[side]
    aggregate(2)  # warm up: imports, and first calls of torch and numpy
    before = rss_mb()
    reset_peak()
    cpu, wall, sample = aggregate(clients)
    memory = (peak_mb() - before) / (NUMBERS * 4 / 1e6)
    return {"cpu": cpu * 1e3, "wall": wall * 1e3, "memory": memory, "sample": sample}


class Clock:
    """Accumulates CPU and wall time spent inside the context."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0

    def __enter__(self) -> "Clock":
        self.since = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu += time.process_time() - self.since[0]
        self.wall += time.perf_counter() - self.since[1]


def payload(numbers: int) -> bytes:
    """A float32 array as flwr serialises it."""
    import numpy as np
    from flwr.app import Array

    return Array(np.full(numbers, 1e-4, dtype=np.float32)).data


def array(data: bytes, shape: tuple[int, ...], client: int) -> Any:  # flwr's Array
    """The payload with its last entry set by client; cheap, since making replies is not measured."""
    from flwr.app import Array

    content = bytearray(data)
    content[-4:] = struct.pack("<f", client / 100)
    return Array(dtype="float32", shape=shape, stype="numpy.ndarray", data=bytes(content))


def ours(clients: int) -> tuple[float, float, float]:
    """Aggregate as the round loop does: one reply at a time, in order, without storing them."""
    import torch
    from flwr.app import ArrayRecord

    from core import wire
    from core.tree import norm, unflat
    from core.types import Update
    from strategies.aggregation.fold import Mean, Share

    shapes = {f"layer.{i}": (8, NUMBERS // TENSORS // 8) for i in range(TENSORS)}
    like = unflat(torch.zeros(1).expand(NUMBERS), shapes)
    reply = wire.encode_update(Update(0, 1, "global", {"delta": like}, {}))
    data = payload(NUMBERS)
    fold, clock = Mean(lambda update, name: Share(update.examples)), Clock()
    for client in range(clients):
        reply["tree.delta"] = ArrayRecord({"flat": array(data, (NUMBERS,), client)})
        with clock:
            update = replace(wire.decode_update(reply), client=client, examples=client + 1)
            assert norm(update.trees["delta"]) < 1000
            fold.add(update)
            del update
    with clock:
        mean = fold.result()["global"]["delta"]
    return clock.cpu, clock.wall, float(mean[f"layer.{TENSORS - 1}"][-1, -1])


def flwrs(clients: int, tensors: int = TENSORS) -> tuple[float, float, float]:
    """Call `aggregate_arrayrecords` on all replies, as flwr's FedAvg does."""
    from flwr.app import ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    data, records = payload(NUMBERS // tensors), []
    for client in range(clients):
        arrays = {f"layer.{i}": array(data, (NUMBERS // tensors,), client) for i in range(tensors)}
        metrics = MetricRecord({"num-examples": client + 1})
        records.append(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}))
    with Clock() as clock:
        mean = aggregate_arrayrecords(records, "num-examples")
    return clock.cpu, clock.wall, float(mean[f"layer.{tensors - 1}"].numpy()[-1])


def flwrs_flat(clients: int) -> tuple[float, float, float]:
    """As flwrs, with the adapter as one array, to show how much of the gain is due to the layout."""
    return flwrs(clients, tensors=1)


def rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
