"""Measure the overhead of a deployment's round beyond training, with and without a resident site.

    python -m benchmarks.warm_site [--model toy 135m] [--sides cold resident both] [--rounds 6] [--clients 1]

It runs a SuperLink and SuperNodes on loopback. A round is one training; medians are over rounds after the first.
"""

import argparse
import contextlib
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from cli.machine.processes import BIN, ROOT, environment

SIDES = {
    "cold": "flower-supernode; the site in a new process for every message",
    "resident": "flower-supernode and accord site",
    "both": "accord node and accord site",
}
SETTINGS = [
    "data.source=jsonl",
    "train.local-steps=2",
    "train.per-device-batch-size=4",
    "train.max-length=64",
    "data.prompt-format=none",  # the random model's vocabulary lacks the words of a template
    "eval.every=0",
    "federation.superlink=deployment",
]
ROWS, PROMPT, ANSWER = 16, 16, 12  # rows of a client; words of a prompt and of an answer
UP_S = 120.0


@dataclass(frozen=True)
class Round:
    """Seconds of one round: in total, of the slowest client's training, and of its preparation."""

    total: float
    train: float
    load: float

    @property
    def overhead(self) -> float:
        return self.total - self.train


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=["toy", "135m"], default=["toy", "135m"])
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--clients", type=int, default=1)
    args = parser.parse_args()
    print(f"flwr's imports: {imports('flwr.clientapp')} s; with the site's: {imports('client_app.handle')} s")
    print("| model | side | round | training | overhead | of it preparing | base loads |", flush=True)
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for model in args.model:
            name = prepare(Path(folder), model, args.clients)
            for side in args.sides:
                rounds, loads = measure(
                    Path(folder) / f"{model}-{side}", name, side, args.rounds, args.clients
                )
                print(row(model, side, rounds, loads), flush=True)


def row(model: str, side: str, rounds: list[Round], loads: int) -> str:
    def median(field: str) -> str:
        return f"{statistics.median(getattr(r, field) for r in rounds[1:]):.2f}"

    return (
        f"| {model} | {side} | {' | '.join(map(median, ('total', 'train', 'overhead', 'load')))} | {loads} |"
    )


def imports(module: str) -> str:
    """Seconds of a process that imports this module; the minimum of three."""
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", f"import {module}"], cwd=ROOT, check=True)
        seconds.append(time.monotonic() - started)
    return f"{min(seconds):.1f}"


def prepare(folder: Path, model: str, clients: int) -> str:
    """Write the rows of every client, and the model. Returns the value of model.name."""
    draw = random.Random(1)
    vocabulary = ["the", "sun", "is", "warm", "please", "add", "water", "go"]
    if model == "135m":
        from benchmarks.cases import build_model

        build_model(folder / model, model, 0)
        vocabulary = [f"w{i}" for i in range(2, 40_000)]
    for client in range(clients):
        lines = []
        for _ in range(ROWS):
            prompt, chosen, rejected = (
                " ".join(draw.choices(vocabulary, k=length)) for length in (PROMPT, ANSWER, ANSWER)
            )
            lines.append(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")
        (folder / f"{model}-{client}.jsonl").write_text("".join(lines))
    return str(folder / model) if model == "135m" else model


def measure(place: Path, model: str, side: str, rounds: int, clients: int) -> tuple[list[Round], int]:
    """Run a deployment. Returns its rounds and how often its clients loaded the base model."""
    with deployed(place, Path(model).name, side, clients) as env:
        settings = [
            f"model.name={model}",
            f"run.num-server-rounds={rounds}",
            f"run.dir={place}/runs",
            f"strategy.min-available-nodes={clients}",
        ]
        process = subprocess.run(
            [sys.executable, str(ROOT / "accord"), "run", *SETTINGS, *settings],
            env=env,
            capture_output=True,
            text=True,
        )
    if process.returncode:
        raise SystemExit(f"{side}: {process.stdout[-2000:]}{process.stderr[-2000:]}; logs: {place}")
    (run,) = (place / "runs").iterdir()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = [
        max((c["seconds/train"], c["seconds/load"]) for c in r["train"]["clients"].values())
        for r in records[1:]
    ]
    evaluated = [r["seconds"].get("evaluate", 0.0) for r in records[1:]]  # after the last round
    measured = [
        Round(r["seconds"]["total"] - scored, train, load)
        for r, scored, (train, load) in zip(records[1:], evaluated, times, strict=True)
    ]
    return measured, sum(json.loads((run / "manifest.json").read_text())["base_loads"].values())


@contextlib.contextmanager
def deployed(place: Path, model: str, side: str, clients: int) -> Iterator[dict[str, str]]:
    """Start a SuperLink and a SuperNode per client, each with its site. Yields the environment for `accord run`."""
    place.mkdir()
    control, fleet = free_port(), free_port()
    env = environment(FLWR_HOME=str(place / "flwr"), ACCORD_HOME=str(place / "home"))
    (place / "flwr").mkdir()
    link = {"address": f"127.0.0.1:{control}", "insecure": True}
    (place / "flwr" / "config.toml").write_text(
        tomli_w.dumps({"superlink": {"default": "deployment", "deployment": link}})
    )
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *command: str) -> None:
        with (place / f"{name}.log").open("wb") as log:
            started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))

    accord = [sys.executable, str(ROOT / "accord")]
    try:
        start("superlink", str(BIN / "flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port",
              str(control), "--fleet-api-address", f"127.0.0.1:{fleet}")  # fmt: skip
        for client in range(clients):
            facts = {"partition-id": client, "num-partitions": clients,
                     "data-path": str(place.parent / f"{model}-{client}.jsonl")}  # fmt: skip
            node = " ".join(f"{key}={value!r}" for key, value in facts.items())
            if side != "cold":
                file = place / f"site-{client}.toml"
                file.write_text(
                    tomli_w.dumps({"address": f"unix:{client}.sock", "state-dir": f"home-{client}", **facts})
                )
                start(f"site-{client}", *accord, "site", str(file))
                wait_until(lambda name=f"site-{client}.log": ": ready" in (place / name).read_text())
                node = f"site='unix:{place}/{client}.sock'"
            command = [*accord, "node"] if side == "both" else [str(BIN / "flower-supernode")]
            start(f"node-{client}", *command, "--insecure", "--superlink", f"127.0.0.1:{fleet}",
                  "--host", "127.0.0.1", "--port", str(free_port()), "--node-config", node)  # fmt: skip
        yield env
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + UP_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"a site is not ready after {UP_S:.0f} s")
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
