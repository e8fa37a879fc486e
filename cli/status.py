"""How a run is, from its folder: for `accord status`, and as Prometheus metrics.

The folder is all there is to ask: it is written after every round, whoever runs the round.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily

from core.errors import ConfigError
from server_app.report.formatting import ABSENT, counted, duration, percent, size
from server_app.report.reading import Run, read_run
from server_app.report.stats import ACCURACIES
from server_app.run_folder import is_held


def silent_s(run: Run) -> float | None:
    """Seconds since the last round was written; None before the first."""
    path = run.dir / "metrics.jsonl"
    return time.time() - path.stat().st_mtime if path.is_file() else None


def standing(run: Run) -> str:
    """Its status; "stopped" where it says that it runs and no process holds its folder."""
    return "stopped" if run.status == "running" and not is_held(run.dir) else run.status


def last_seen(run: Run) -> dict[int, int]:
    """The last round that each client took part in; clients that never did are at 0."""
    seen = {int(client): 0 for client in run.manifest.get("clients", {})}
    for record in run.records:
        seen |= dict.fromkeys(record.participants, record.round)
    return dict(sorted(seen.items()))


def lines(run: Run) -> Iterator[str]:
    """The run in a line, its last round in another, then a line for each client that is missing or failed."""
    ago, how = silent_s(run), standing(run)
    yield (
        f"run      {run.dir.name}: {how}, round {run.completed} of {run.rounds}, "
        f"last written {duration(ago)} ago" + ("" if ago is not None else " (nothing yet)")
    )
    if how == "stopped":
        yield f"         to go on: accord resume {run.dir}"
    if not run.records:
        return
    last = run.records[-1]
    asked = len({*last.participants, *last.failed})
    score = next((last.eval.mean[name] for name in ACCURACIES if name in last.eval.mean), None)
    yield (
        f"         {len(last.participants)} of {counted(asked, 'client')} answered, accuracy {percent(score)}, "
        f"up {size(last.bytes_up)}, down {size(last.bytes_down)}, took {duration(last.total_s)}"
    )
    for client, rnd in last_seen(run).items():
        if why := last.failed.get(client):
            yield f"missing  client {run.label(client)}, last seen in round {rnd or ABSENT}: {why}"


@dataclass(frozen=True)
class Metrics:
    """A Prometheus collector that reads the run's folder at every scrape; a number that the run lacks is absent."""

    folder: Path

    def collect(self) -> Iterator[GaugeMetricFamily]:
        run = read_run(self.folder)
        yield _gauge("rounds", "Rounds that were asked for", run.rounds)
        yield _gauge("round", "The last round that was completed", run.completed)
        yield _gauge("finished", "1 when it has finished", run.status == "finished")
        if (ago := silent_s(run)) is not None:
            yield _gauge("silent_seconds", "Since the last round was written", ago)
        if not run.records:
            return
        last = run.records[-1]
        facts = {
            "round_seconds": ("Of the last round", last.total_s),
            "round_bytes_up": ("Received in the last round", last.bytes_up),
            "round_bytes_down": ("Sent in the last round", last.bytes_down),
            "round_clients": ("That took part in the last round", len(last.participants)),
            "round_failed": ("That were asked in the last round and gave nothing", len(last.failed)),
            "round_loss": ("Mean training loss of the last round", last.train.mean.get("loss")),
        }
        for name, (about, value) in facts.items():
            if value is not None:
                yield _gauge(name, about, value)
        scores = GaugeMetricFamily("accord_run_accuracy", "On held-out rows, 0 to 1", labels=["metric"])
        for name in ACCURACIES:
            if name in last.eval.mean:
                scores.add_metric([name], last.eval.mean[name])
        yield scores
        seen = GaugeMetricFamily(
            "accord_run_client_round", "The last that it took part in", labels=["client"]
        )
        for client, rnd in last_seen(run).items():
            seen.add_metric([str(client)], rnd)
        yield seen


def _gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"accord_run_{name}", about, value=float(value))


def exposition(folder: Path) -> str:
    """The metrics as text."""
    return generate_latest(_registry(folder)).decode()


def serve(folder: Path, port: int) -> None:
    """Answer Prometheus on the loopback until the process ends; ConfigError where the port is taken."""
    try:
        _, thread = start_http_server(port, "127.0.0.1", _registry(folder))
    except OSError as error:
        raise ConfigError(f"cannot listen on 127.0.0.1:{port}: {error.strerror}") from error
    thread.join()


def _registry(folder: Path) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(Metrics(folder))  # type: ignore[arg-type]  # collect() is all that it asks for
    return registry
