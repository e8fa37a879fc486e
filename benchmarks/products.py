"""Measure whether MKL, which torch uses, or oneDNN multiplies with frozen weights faster on this processor.

    python -m benchmarks.products

It uses one thread, float32 and CPU time, and the two take turns. A ratio above 1 means that oneDNN is faster. It checks
the choice by processor in tasks/model/linear.py.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from tasks.model.linear import AVAILABLE, CPUINFO, ENABLED

SHAPES = (
    (4000, 288, 768),
    (2000, 576, 1536),
    (1000, 2048, 2048),
    (128, 288, 32000),
)  # tokens, inputs, outputs
REPEATS = 15


def main() -> None:
    torch.set_num_threads(1)
    if not AVAILABLE:
        raise SystemExit("products.py: this torch has no oneDNN product for linear layers")
    names = [
        line.partition(":")[2].strip()
        for line in CPUINFO.read_text().splitlines()
        if line.startswith("model name")
    ]
    chosen = "oneDNN" if ENABLED else "torch's own product"
    print(
        f"{names[0]}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}: Accord uses {chosen}\n"
    )
    print("| tokens x inputs x outputs | MKL / oneDNN, forward | MKL / oneDNN, gradient |")
    print("|---|---|---|")
    for tokens, inputs, outputs in SHAPES:
        weight = torch.randn(outputs, inputs)
        cells = [ratios(torch.randn(tokens, inputs), weight), ratios(torch.randn(tokens, outputs), weight.T)]
        print(f"| {tokens} x {inputs} x {outputs} | " + " | ".join(map(cell, cells)) + " |", flush=True)


def ratios(x: Tensor, weight: Tensor) -> list[float]:
    """The CPU time of torch's product over that of oneDNN's, in each of REPEATS turns."""
    by_torch = partial(linear, x, weight)
    by_onednn = partial(torch.ops.mkldnn._linear_pointwise, x, weight, None, "none", [], "")
    by_torch(), by_onednn()  # oneDNN prepares its kernel
    return [seconds(by_torch) / seconds(by_onednn) for _ in range(REPEATS)]


def seconds(product: Callable[[], Tensor]) -> float:
    started = time.process_time()
    for _ in range(3):
        product()
    return time.process_time() - started


def cell(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
