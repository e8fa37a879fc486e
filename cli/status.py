"""The state of a run, read from its folder: for `accord status` and as Prometheus metrics.

The folder is the only source: it is written after every round, in a simulation as in a deployment.
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


def status_of(run: Run) -> str:
    """The status in the manifest, but "stopped" if that is "running" while no process holds the folder."""
    return "stopped" if run.status == "running" and not is_held(run.dir) else run.status


def last_seen(run: Run) -> dict[int, int]:
    """The last round that each client took part in, by client; 0 for a client that never did."""
    rounds = {int(client): 0 for client in run.manifest.get("clients", {})}
    for record in run.records:
        rounds |= dict.fromkeys(record.participants, record.round)
    return dict(sorted(rounds.items()))


def lines(run: Run) -> Iterator[str]:
    """A line for the run, one for its last round, and one for each client that failed in that round."""
    ago, status = silent_s(run), status_of(run)
    yield (
        f"run      {run.dir.name}: {status}, round {run.completed} of {run.rounds}, "
        f"last written {duration(ago)} ago" + ("" if ago is not None else " (nothing yet)")
    )
    if status == "stopped":
        yield f"         to continue: accord resume {run.dir}"
    if not run.records:
        return
    last = run.records[-1]
    cohort = len({*last.participants, *last.failed})
    score = next((last.eval.mean[name] for name in ACCURACIES if name in last.eval.mean), None)
    yield (
        f"         {len(last.participants)} of {counted(cohort, 'client')} answered, accuracy {percent(score)}, "
        f"up {size(last.bytes_up)}, down {size(last.bytes_down)}, took {duration(last.total_s)}"
    )
    for client, rnd in last_seen(run).items():
        if reason := last.failed.get(client):
            yield f"missing  client {run.label(client)}, last seen in round {rnd or ABSENT}: {reason}"


@dataclass(frozen=True)
class Metrics:
    """A Prometheus collector that reads the run folder at every scrape; a value that the run lacks is absent."""

    folder: Path

    def collect(self) -> Iterator[GaugeMetricFamily]:
        run = read_run(self.folder)
        yield _gauge("rounds", "Rounds of the whole run", run.rounds)
        yield _gauge("round", "The last completed round", run.completed)
        yield _gauge("finished", "1 if the run has finished, else 0", run.status == "finished")
        if (ago := silent_s(run)) is not None:
            yield _gauge("silent_seconds", "Seconds since the last round was written", ago)
        if not run.records:
            return
        last = run.records[-1]
        metrics = {
            "round_seconds": ("Duration of the last round", last.total_s),
            "round_bytes_up": ("Bytes received in the last round", last.bytes_up),
            "round_bytes_down": ("Bytes sent in the last round", last.bytes_down),
            "round_clients": ("Clients that took part in the last round", len(last.participants)),
            "round_failed": ("Clients without an update in the last round", len(last.failed)),
            "round_loss": ("Mean training loss of the last round", last.train.mean.get("loss")),
        }
        for name, (description, value) in metrics.items():
            if value is not None:
                yield _gauge(name, description, value)
        scores = GaugeMetricFamily(
            "accord_run_accuracy", "Accuracy on held-out rows, 0 to 1", labels=["metric"]
        )
        for name in ACCURACIES:
            if name in last.eval.mean:
                scores.add_metric([name], last.eval.mean[name])
        yield scores
        client_rounds = GaugeMetricFamily(
            "accord_run_client_round", "The last round that the client took part in", labels=["client"]
        )
        for client, rnd in last_seen(run).items():
            client_rounds.add_metric([str(client)], rnd)
        yield client_rounds


def _gauge(name: str, description: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"accord_run_{name}", description, value=float(value))


def exposition(folder: Path) -> str:
    """The metrics in Prometheus' text format."""
    return generate_latest(_registry(folder)).decode()


def serve(folder: Path, port: int) -> None:
    """Serve the metrics on the loopback until the process ends. Raises ConfigError if the port is in use."""
    try:
        _, thread = start_http_server(port, "127.0.0.1", _registry(folder))
    except OSError as error:
        raise ConfigError(f"cannot listen on 127.0.0.1:{port}: {error.strerror}") from error
    thread.join()


def _registry(folder: Path) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(Metrics(folder))  # type: ignore[arg-type]  # the registry calls only collect()
    return registry
