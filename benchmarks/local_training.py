"""Time one client's local training of a round: TRL with its defaults, TRL tuned, and Accord's engine.

All sides train on the same tokens in the same order from the same adapter. Losses and LoRA gradients of the first step
are compared before anything is timed. See benchmarks/README.md.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TASKS = ("dpo", "kto", "sft", "selector")
# With a random model the log-probability of a response is near -1500, which float32 rounds to 6e-5; times beta, this is
# 1e-5 of the gradient on every side (measured against float64), and two sides may deviate in opposite directions.
TOLERANCE = 3e-5
# "keep": glibc keeps the memory of large tensors, which it otherwise returns and faults in again at every step. With
# glibc 2.36 aligned memory is then hardly reused and the process grows, so that "system" is fairer there.
ALLOCATORS = {
    "keep": {"MALLOC_TRIM_THRESHOLD_": str(1 << 33), "MALLOC_MMAP_THRESHOLD_": str(1 << 33)},
    "system": {"MALLOC_TRIM_THRESHOLD_": "", "MALLOC_MMAP_THRESHOLD_": ""},
}
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": str(ROOT),
}
Figures = dict[str, Any]  # Any: values of JSON


def main() -> None:
    args = arguments()
    same_settings(args)
    warnings.simplefilter("ignore", FutureWarning)
    from transformers.utils import logging

    from benchmarks.cases import build_model, make_case

    logging.disable_progress_bar()
    if args.peak_of:
        case = make_case(args.task, args.folder, steps=args.steps, threads=args.threads)
        print(json.dumps(peak_mb(case, args.peak_of)))
        return
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        build_model(args.folder, args.model, args.vocabulary)
        for task in TASKS if args.task == "all" else (args.task,):
            tables.append(measure(task, args))
            show(tables[-1])
    if args.json:
        args.json.write_text(json.dumps(tables, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    page = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    page.add_argument("--task", choices=(*TASKS, "all"), default="all")
    page.add_argument("--model", choices=("tiny", "15m", "135m"), default="15m")
    page.add_argument(
        "--vocabulary", type=int, default=0, help="0: 8192 for tiny, 32000 for 15m, 49152 for 135m"
    )
    page.add_argument("--steps", type=int, default=10)
    page.add_argument("--repeats", type=int, default=3)
    page.add_argument("--threads", type=int, default=2)
    page.add_argument("--allocator", choices=ALLOCATORS, default="keep")
    page.add_argument("--json", type=Path, help="write the figures here as well")
    page.add_argument("--peak-of", help=argparse.SUPPRESS)  # used by the child processes of this script
    page.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return page.parse_args()


def same_settings(args: argparse.Namespace) -> None:
    """Restart this process with the environment that all sides share, unless it already has it."""
    threads = {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    wanted = {**SETTINGS, **ALLOCATORS[args.allocator], **threads}
    if any(os.environ.get(key, "") != value for key, value in wanted.items()):
        merged = {**os.environ, **wanted}
        os.execve(sys.executable, [sys.executable, *sys.argv], {k: v for k, v in merged.items() if v})


def measure(task: str, args: argparse.Namespace) -> Figures:
    """Measure each side's memory in a separate process, compare the first steps, time rounds in turn (A B C A B C)."""
    from benchmarks.cases import ROWS, make_case
    from benchmarks.sides import SIDES, plain_selector

    case = make_case(task, args.folder, steps=args.steps, threads=args.threads)
    kinds = [kind for kind in SIDES if case.task.needs_reference or kind != "accord-first"]
    peaks = {kind: peak_in_child(task, args, kind) for kind in kinds}
    sides = {kind: SIDES[kind](case) for kind in kinds}
    firsts = {}
    for kind, side in sides.items():
        firsts[kind] = side.run(1, True)
    error = {kind: difference(first, firsts["trl-default"]) for kind, first in firsts.items()}
    if task == "selector":  # its loss, over two logits of the vocabulary, is not in TRL
        plain = plain_selector(case)
        error |= {kind: difference(firsts[kind], plain) for kind in firsts if kind.startswith("accord")}
    assert max(map(max, error.values())) < TOLERANCE, f"the sides do not compute the same step: {error}"
    cpu: dict[str, list[float]] = {kind: [] for kind in sides}
    wall: dict[str, list[float]] = {kind: [] for kind in sides}
    loss = {}
    for _ in range(args.repeats):
        for kind, side in sides.items():
            side.reset()
            gc.collect()
            started = time.process_time(), time.perf_counter()
            loss[kind], _ = side.run(args.steps, False)
            cpu[kind].append(time.process_time() - started[0])
            wall[kind].append(time.perf_counter() - started[1])
    seconds = {kind: statistics.median(values) for kind, values in cpu.items()}
    table: Figures = {"task": task, "rows": ROWS[task], "sides": {}}
    table |= {
        key: getattr(args, key) for key in ("model", "vocabulary", "steps", "repeats", "threads", "allocator")
    }
    for kind in sides:
        table["sides"][kind] = {
            "cpu_s": seconds[kind],
            "wall_s": statistics.median(wall[kind]),
            "over_default": seconds["trl-default"] / seconds[kind],
            "over_tuned": seconds["trl-tuned"] / seconds[kind],
            "peak_mb": peaks[kind],
            "loss": loss[kind],
            "loss_error": error[kind][0],
            "gradient_error": error[kind][1],
        }
    return table


def difference(a: tuple[float, dict], b: tuple[float, dict]) -> tuple[float, float]:
    """Differences of the losses and of all gradients (L2), relative to b."""
    import torch

    flat_a, flat_b = (
        torch.cat([gradients[name].flatten() for name in sorted(b[1])]) for _, gradients in (a, b)
    )
    return abs(a[0] - b[0]) / abs(b[0]), float((flat_a - flat_b).norm() / flat_b.norm())


def peak_in_child(task: str, args: argparse.Namespace, kind: str) -> float:
    """Peak memory of a side, in MB, in a new process, since a process keeps its peak; three steps suffice."""
    options = {
        "--task": task,
        "--folder": args.folder,
        "--steps": min(3, args.steps),
        "--threads": args.threads,
    }
    options |= {"--allocator": args.allocator, "--peak-of": kind}
    arguments = [str(part) for option in options.items() for part in option]
    out = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(out.stdout.splitlines()[-1])


def peak_mb(case: Any, kind: str) -> float:  # Any: benchmarks.cases.Case, whose import is slow
    """Increase of resident memory over that of the loaded model during a round, in MB (Linux only)."""
    from benchmarks.sides import SIDES

    side = SIDES[kind](case)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident_mb("VmRSS")
    side.run(case.cfg.local_steps, False)
    return resident_mb("VmHWM") - before


def resident_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def show(table: Figures) -> None:
    kind = "pairs" if table["task"] in ("dpo", "selector") else "rows"
    print(
        f"\n{table['task']}: a client-round of {table['steps']} steps of {table['rows']} {kind}, {table['model']} "
        f"Llama, {table['threads']} threads, allocator {table['allocator']}, medians of {table['repeats']}"
    )
    print("side             CPU s   wall s  x default  x tuned  peak MB     loss  grad. error")
    for name, f in table["sides"].items():
        print(
            f"{name:13}{f['cpu_s']:9.2f}{f['wall_s']:9.2f}{f['over_default']:11.2f}{f['over_tuned']:9.2f}"
            f"{f['peak_mb']:9.0f}{f['loss']:9.4f}{f['gradient_error']:13.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
