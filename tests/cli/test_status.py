"""The state of a run, as lines and as Prometheus metrics."""

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
    """A run that stopped after round 4, in which clients 5 and 6 were missing."""
    records = [sample.dpo_record(rnd, absent=(5, 6) if rnd == 4 else ()) for rnd in range(5)]
    return sample.write_run(tmp_path, records, status="running")


def test_the_lines_show_the_last_round_and_the_missing_clients(stopped):
    handle = os.open(stopped, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # as the process of the run does
    output = list(lines(read_run(stopped)))
    os.close(handle)
    assert "running, round 4 of 12, last written 0." in output[0]
    assert output[1].lstrip().startswith("6 of 8 clients answered, accuracy ")
    assert [line.split(":")[0] for line in output[2:]] == [
        f"missing  client {client}, last seen in round 3" for client in (5, 6)
    ]
    assert last_seen(read_run(stopped)) == {c: 3 if c in (5, 6) else 4 for c in range(8)}


def test_a_run_without_a_process_is_stopped(stopped):
    first, second, *_ = lines(read_run(stopped))
    assert ": stopped, round 4 of 12, " in first
    assert f"accord resume {stopped}" in second


def test_a_run_before_its_first_round_is_described(tmp_path):
    run = sample.write_run(tmp_path, [], status="running")
    (run / "metrics.jsonl").unlink(missing_ok=True)
    first, _ = lines(read_run(run))
    assert first.endswith("round 0 of 12, last written - ago (nothing yet)")
    assert "accord_run_silent_seconds" not in exposition(run)


def test_prometheus_reads_the_numbers_of_the_last_round(stopped):
    metrics = samples(exposition(stopped))
    run = read_run(stopped)
    assert metrics["accord_run_round"] == 4
    assert metrics["accord_run_rounds"] == 12
    assert metrics["accord_run_finished"] == 0
    assert metrics["accord_run_round_clients"] == 6
    assert metrics["accord_run_round_failed"] == 2
    assert metrics["accord_run_client_round|5"] == 3
    assert metrics["accord_run_accuracy|logps/accuracies"] == run.records[-1].eval.mean["logps/accuracies"]
    assert 0 <= metrics["accord_run_silent_seconds"] < 60


def test_every_scrape_reads_the_folder_again(stopped):
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
