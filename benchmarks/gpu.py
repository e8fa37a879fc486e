"""Run every check that needs a GPU and print one table: `make gpu`, or without make `python3 -m benchmarks.gpu`.

    make gpu-wheels                                     # with a package registry: fills dist/gpu-wheels
    python3 -m benchmarks.gpu --wheels dist/gpu-wheels  # on the machine with the GPU, which needs only Python and torch

The wheels are unpacked into a temporary folder that comes first on the path. Nothing is installed, and Flower and Ray
are not needed. --device cpu --quick runs the same checks on tiny shapes.
"""

import argparse
import datetime
import os
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports torch and transformers, which may be in the wheels
    from benchmarks.gpu_models import Row

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    page = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    page.add_argument("--wheels", type=Path, help="a folder of wheels to put first on the path")
    page.add_argument("--device", default="cuda")
    page.add_argument("--quick", action="store_true", help="tiny shapes")
    page.add_argument("--out", type=Path, help="write the table here as well")
    args = page.parse_args()
    if args.wheels:
        raise SystemExit(
            with_wheels(
                args.wheels,
                [arg for arg in sys.argv[1:] if arg != "--wheels" and arg != str(args.wheels)],
            )
        )
    table: list[str] = []
    failed = False
    for line, passed in run(args.device, quick=args.quick):
        print(line, flush=True)
        table.append(line)
        failed = failed or passed is False
    if args.out:
        args.out.write_text("\n".join(table) + "\n")
    raise SystemExit(1 if failed else 0)


def with_wheels(folder: Path, arguments: list[str]) -> int:
    """Run this script in a new process that imports packages from these wheels first."""
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        print(
            f"gpu.py: no wheels in {folder}; make them with `make gpu-wheels` on a machine with a package registry",
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory(prefix="accord-gpu-") as site:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
        path = os.pathsep.join([site, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")])])
        env = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "ACCORD_HOME": f"{site}/accord-home"}
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu", *arguments], env=env, cwd=ROOT
        ).returncode


def run(device: str, *, quick: bool) -> Iterator[tuple[str, bool | None]]:
    """The lines of the table, and whether each passed (None: no check). An exception in a check is a failed line."""
    import torch
    import transformers

    cuda = device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        raise SystemExit(
            "gpu.py: torch finds no CUDA device; use --device cpu --quick to test the script itself"
        )
    name = torch.cuda.get_device_name() if cuda else platform.processor() or "CPU"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    yield f"{datetime.date.today()}: {name}, {versions}", None
    yield from (("", None), ("| check | figure | |", None), ("|---|---|---|", None))
    for check in checks(device, quick=quick):
        started = time.perf_counter()
        name = f"{check.func.__name__} {check.args[1]}"
        try:
            rows = check()
        except Exception as error:  # a broken check must not hide the others
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            yield f"| {name} | {reason} | FAILED |", False
            continue
        yield from ((row.line(), row.passed) for row in rows)
        yield f"| {name}, seconds | {time.perf_counter() - started:.1f} | |", None


def checks(device: str, *, quick: bool) -> list["partial[list[Row]]"]:
    """Each check as a call without arguments, in order of importance."""
    from benchmarks import gpu_checks as g
    from benchmarks import gpu_models as m
    from benchmarks.gpu_speed import speed

    small, large = (m.TINY, m.TINY) if quick else (m.SMALL, m.HALF_BILLION)
    pairs = [
        (check, dtype) for check in (g.packing, g.leaks, g.repetition) for dtype in ("float32", "bfloat16")
    ]
    return [
        *(partial(check, device, dtype, small) for check, dtype in pairs),
        partial(speed, device, "bfloat16", large),
    ]


if __name__ == "__main__":
    main()
