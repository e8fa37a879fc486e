"""Measure whether memory grows with the number of clients or of rounds of a simulation.

    python -m benchmarks.many_clients [KEY=VALUE ...] [--clients 1000] [--rounds 6]

It is one `accord run` on the toy world that trains 2 % of the clients per round and scores all before and after. It
prints the resident memory of the run's processes by kind: when all clients have been scored once, the maximum after
that, and at the end.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
KINDS = {"flower-superlink": "SuperLink", "flwr-simulation": "server", "ray::ClientApp": "clients"}
SMALL = [
    "strategy.fraction-train=0.02",
    "train.local-steps=2",
    "data.rows-per-client=8",
    "data.eval-rows-per-client=4",
    "eval.every=0",
]
EVERY_S = 2.0
Sample = dict[str, float]  # MB of all processes by kind


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="passed on to accord run")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    size = [f"federation.num-supernodes={args.clients}", f"run.num-server-rounds={args.rounds}"]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            str(ROOT / "accord"),
            "run",
            *SMALL,
            *size,
            *args.settings,
            f"run.dir={folder}/runs",
        ]
        before, after, seconds = run_and_sample(command, f"{folder}/home")
    print(f"{args.clients} clients, {args.rounds} rounds: {seconds:.0f} s")
    print("| processes | MB, all clients scored once | most later | last |")
    print("|---|---|---|---|")
    for kind in KINDS.values():
        later = [sample[kind] for sample in after]
        print(f"| {kind} | {before[-1][kind]:.0f} | {max(later):.0f} | {later[-1]:.0f} |")


def run_and_sample(command: list[str], home: str) -> tuple[list[Sample], list[Sample], float]:
    """Run a command. Returns the samples before and after the line of round 0 (all clients scored), and seconds."""
    started = time.monotonic()
    env = {**os.environ, "ACCORD_HOME": home}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    before: list[Sample] = []
    after: list[Sample] = []
    scored = threading.Event()

    def sample() -> None:
        while process.poll() is None:
            memory = resident_memory(home)
            if len(memory) == len(KINDS):  # all kinds of processes are running
                (after if scored.is_set() else before).append(memory)
            time.sleep(EVERY_S)

    sampler = threading.Thread(target=sample)
    sampler.start()
    for line in process.stdout:
        print(line, end="", flush=True)
        if line.lstrip().startswith("0/"):
            scored.set()
    sampler.join()
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed")
    return before, after, time.monotonic() - started


def resident_memory(home: str) -> Sample:
    """Resident memory of the run's processes, recognised by ACCORD_HOME in their environment."""
    memory: Sample = defaultdict(float)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline()[:3])
            kind = next((name for mark, name in KINDS.items() if mark in command), None)
            if kind and process.environ().get("ACCORD_HOME") == home:
                memory[kind] += process.memory_info().rss / 1e6
    return memory


if __name__ == "__main__":
    main()
