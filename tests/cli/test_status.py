"""What a run's folder says of the run: in lines, and to Prometheus."""

import fcntl
import json
import os
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from cli.status import Metrics, exposition, last_seen, lines, serve
from core.errors import ConfigError
from server_app.report.reading import read_run
from tests.federation.conftest import free_port
from tests.server_app.report import sample


def samples(text: str) -> dict[str, float]:
    return {
        s.name + "".join(f"|{v}" for v in s.labels.values()): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


@pytest.fixture
def stopped(tmp_path):
    """A run that stands after round 4, which clients 5 and 6 missed."""
    records = [sample.dpo_record(rnd, absent=(5, 6) if rnd == 4 else ()) for rnd in range(5)]
    return sample.write_run(tmp_path, records, status="running")


def test_a_run_is_told_by_its_last_round_and_who_is_missing_since_when(stopped):
    handle = os.open(stopped, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # as the process that runs it holds it
    told = list(lines(read_run(stopped)))
    os.close(handle)
    assert "running, round 4 of 12, last written 0." in told[0]
    assert told[1].lstrip().startswith("6 of 8 clients answered, accuracy ")
    assert [line.split(":")[0] for line in told[2:]] == [
        f"missing  client {client}, last seen in round 3" for client in (5, 6)
    ]
    assert last_seen(read_run(stopped)) == {c: 3 if c in (5, 6) else 4 for c in range(8)}


def test_a_run_that_nobody_runs_is_stopped(stopped):
    first, then, *_ = lines(read_run(stopped))
    assert ": stopped, round 4 of 12, " in first
    assert then == f"         to go on: accord resume {stopped}"


def test_a_run_without_a_round_says_so(tmp_path):
    run = sample.write_run(tmp_path, [], status="running")
    (run / "metrics.jsonl").unlink(missing_ok=True)
    told, _ = lines(read_run(run))
    assert told.endswith("round 0 of 12, last written - ago (nothing yet)")
    assert "accord_run_silent_seconds" not in exposition(run)


def test_prometheus_reads_the_numbers_of_the_last_round(stopped):
    found = samples(exposition(stopped))
    run = read_run(stopped)
    assert found["accord_run_round"] == 4
    assert found["accord_run_rounds"] == 12
    assert found["accord_run_finished"] == 0
    assert found["accord_run_round_clients"] == 6
    assert found["accord_run_round_failed"] == 2
    assert found["accord_run_client_round|5"] == 3
    assert found["accord_run_accuracy|logps/accuracies"] == run.records[-1].eval.mean["logps/accuracies"]
    assert 0 <= found["accord_run_silent_seconds"] < 60


def test_what_is_served_is_as_the_folder_is_at_that_moment(stopped):
    port = free_port()
    registry = CollectorRegistry()
    registry.register(Metrics(stopped))
    server, thread = start_http_server(port, "127.0.0.1", registry)
    try:
        assert samples(get(port))["accord_run_round"] == 4
        with (stopped / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(sample.dpo_record(5)) + "\n")
        assert samples(get(port))["accord_run_round"] == 5
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            serve(stopped, port)
    finally:
        server.shutdown()
        thread.join()


def get(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return answer.read().decode()
