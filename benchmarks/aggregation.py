"""The server's half of a round: N adapters of 4.2 M float32 numbers become one, against flwr's own aggregation.

Each side and size runs in a process of its own, sides taking turns; ours takes replies as the round loop does
(decode, check, fold), flwr's `aggregate_arrayrecords` takes the list of replies that its strategies hold.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NUMBERS, TENSORS = 4_194_304, 128  # LoRA of rank 8 on q and v of a 7B Llama: 16.8 MB
SIDES = ("flwr", "flwr-flat", "accord")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 300])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.clients[0], args.threads)))
        return
    print(f"{NUMBERS} float32 numbers a client, {args.repeats} repeats, {args.threads} thread(s)\n")
    print("| clients | side | CPU ms | wall ms | against flwr | peak memory above the start, adapters |")
    print("|---|---|---|---|---|---|")
    for clients in args.clients:
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(args.repeats):
            for side in SIDES:
                runs[side].append(child(side, clients, args.threads))
        middle = {
            side: {key: statistics.median(r[key] for r in runs[side]) for key in ("cpu", "wall", "memory")}
            for side in SIDES
        }
        assert abs(runs["accord"][0]["sample"] - runs["flwr"][0]["sample"]) < 1e-6, "the sides disagree"
        for side, m in middle.items():
            ratio = middle["flwr"]["cpu"] / m["cpu"]
            print(
                f"| {clients} | {side} | {m['cpu']:.0f} | {m['wall']:.0f} | {ratio:.1f} | {m['memory']:.1f} |"
            )


def child(side: str, clients: int, threads: int) -> dict[str, Any]:
    command = [
        sys.executable, __file__, "--side", side, "--clients", str(clients), "--threads", str(threads),
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    return json.loads(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)


def measure(side: str, clients: int, threads: int) -> dict[str, Any]:
    """CPU and wall milliseconds of the aggregation alone, and peak memory over what the process had before."""
    import torch

    torch.set_num_threads(threads)
    act = {"flwr": flwrs, "flwr-flat": flwrs_flat, "accord": ours}[side]
    act(2)  # imports, and torch's and numpy's first calls
    before = rss_mb()
    reset_peak()
    cpu, wall, sample = act(clients)
    memory = (peak_mb() - before) / (NUMBERS * 4 / 1e6)
    return {"cpu": cpu * 1e3, "wall": wall * 1e3, "memory": memory, "sample": sample}


class Clock:
    """CPU and wall time between start and stop, added up."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0

    def __enter__(self) -> "Clock":
        self.since = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu += time.process_time() - self.since[0]
        self.wall += time.perf_counter() - self.since[1]


def delta(client: int) -> dict[str, Any]:
    """A client's update as views of one tensor; entry 0 tells the client."""
    import torch

    flat = torch.full((NUMBERS,), 1e-4)
    flat[0] = client / 100
    return {f"layer.{i}": part for i, part in enumerate(flat.view(TENSORS, 8, -1))}


def ours(clients: int) -> tuple[float, float, float]:
    """As the round loop does it: one reply at a time, in order, nothing kept."""
    from flwr.app import RecordDict

    from core import wire
    from core.tree import norm
    from core.types import Update
    from strategies.kit.fold import Mean, Share

    def replies() -> Iterator[RecordDict]:
        for client in range(clients):
            yield wire.encode_update(Update(client, client + 1, "global", {"delta": delta(client)}, {}))

    fold, clock = Mean(lambda update, name: Share(update.examples)), Clock()
    for reply in replies():
        with clock:
            update = wire.decode_update(reply)
            assert norm(update.trees["delta"]) < 1000
            fold.add(update)
    with clock:
        mean = fold.result()["global"]["delta"]
    return clock.cpu, clock.wall, float(mean["layer.0"][0, 0])


def flwrs(clients: int, tensors: int = TENSORS) -> tuple[float, float, float]:
    """`aggregate_arrayrecords` on all replies, as flwr's FedAvg calls it."""
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    records = []
    for client in range(clients):
        parts = list(delta(client).values())
        if tensors == 1:
            import torch

            parts = [torch.stack(parts).view(-1)]
        arrays = ArrayRecord({f"layer.{i}": Array(part.numpy()) for i, part in enumerate(parts)})
        records.append(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": client + 1})}))
    with Clock() as clock:
        mean = aggregate_arrayrecords(records, "num-examples")
    return clock.cpu, clock.wall, float(mean["layer.0"].numpy().reshape(-1)[0])


def flwrs_flat(clients: int) -> tuple[float, float, float]:
    """The same with the adapter as one array, for the part of the gain that is the layout's."""
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
