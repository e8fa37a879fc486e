"""Does memory grow with the clients of a simulation, or with its rounds?

    python -m benchmarks.many_clients [KEY=VALUE ...] [--clients 1000] [--rounds 6]

One `accord run` on the toy world, two clients in a hundred a round, everyone scored before and after. Printed is the
resident memory of the run's processes, by kind: when all clients had been scored once, the most later, and last.
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
Sample = dict[str, float]  # by kind: MB of all its processes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="passed on to accord run")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    words = [f"federation.num-supernodes={args.clients}", f"run.num-server-rounds={args.rounds}"]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            str(ROOT / "accord"),
            "run",
            *SMALL,
            *words,
            *args.words,
            f"run.dir={folder}/runs",
        ]
        before, after, seconds = watched(command, f"{folder}/home")
    print(f"{args.clients} clients, {args.rounds} rounds: {seconds:.0f} s")
    print("| processes | MB, all clients scored once | most later | last |")
    print("|---|---|---|---|")
    for kind in KINDS.values():
        later = [sample[kind] for sample in after]
        print(f"| {kind} | {before[-1][kind]:.0f} | {max(later):.0f} | {later[-1]:.0f} |")


def watched(command: list[str], home: str) -> tuple[list[Sample], list[Sample], float]:
    """Run it; samples up to the line of round 0, for which every client has been asked, those after it, and seconds."""
    started = time.monotonic()
    env = {**os.environ, "ACCORD_HOME": home}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    before: list[Sample] = []
    after: list[Sample] = []
    scored = threading.Event()

    def sample() -> None:
        while process.poll() is None:
            found = taken(home)
            if len(found) == len(KINDS):  # all are up, and none has gone
                (after if scored.is_set() else before).append(found)
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


def taken(home: str) -> Sample:
    """Resident memory of this run's processes now; all of them carry its ACCORD_HOME, whoever their parent is."""
    found: Sample = defaultdict(float)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline()[:3])
            kind = next((name for mark, name in KINDS.items() if mark in words), None)
            if kind and process.environ().get("ACCORD_HOME") == home:
                found[kind] += process.memory_info().rss / 1e6
    return found


if __name__ == "__main__":
    main()
