"""Compare FedAvg with local training and with all rows in one place, over several seeds, on the toy world.

    python -m benchmarks.baselines --seeds 1 2 3 [KEY=VALUE ...]

Every cell is one `accord run` (8 simulated clients, the same steps per client and round). It prints held-out preference
accuracies of the last round, per seed and with a 95 % interval of the mean over seeds (t).
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from scipy.stats import t

from benchmarks.options import options
from server_app.report.reading import Run, read_run

ROOT = Path(__file__).parents[1]
STRATEGIES = ("fedavg", "local", "centralized")
METRICS = ("logps/accuracies", "rewards/accuracies")


def main() -> None:
    parser = options(__doc__, "passed on to accord run")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES))
    args = parser.parse_args()
    rows: dict[str, list[float]] = {}
    for seed in args.seeds:
        for strategy in args.strategies:
            first, last = scores(seed, strategy, args.settings)
            if strategy == args.strategies[0]:
                rows.setdefault("base | logps/accuracies", []).append(first["logps/accuracies"])
                rows.setdefault("longer answer wins", []).append(first["length/accuracies"])
            for metric in METRICS:
                rows.setdefault(f"{strategy} | {metric}", []).append(last[metric])
    print(
        f"{'held-out accuracy, %':<36}"
        + "".join(f"{f'seed {s}':>9}" for s in args.seeds)
        + f"{'mean':>9}  95 %"
    )
    for name, values in rows.items():
        print(f"{name:<36}" + "".join(f"{100 * v:9.1f}" for v in values) + interval(values))


def scores(seed: int, strategy: str, settings: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """The federation's mean scores before training and after the last round."""
    run = federation([f"run.seed={seed}", f"strategy.name={strategy}", "eval.every=0", *settings])
    return run.records[0].eval.mean, run.records[-1].eval.mean


def federation(settings: list[str]) -> Run:
    """Run one `accord run` in a new process and read its results."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "accord"), "run", *settings, f"run.dir={folder}"]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{process.stdout}{process.stderr}")
        (path,) = Path(folder).iterdir()
        return read_run(path)


def interval(values: list[float]) -> str:
    mean = 100 * statistics.mean(values)
    if len(values) < 2:
        return f"{mean:9.1f}"
    half = 100 * t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:9.1f}  +/- {half:.1f}"


if __name__ == "__main__":
    main()
