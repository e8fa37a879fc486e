"""Processes of a real deployment that are killed, stopped or given bad rows: rounds close and runs continue."""

import contextlib
import json
import signal

import psutil
import pytest

from core import store
from tests.faults.federation import files, run_of, start, whole
from tests.federation.conftest import kill_tree, metrics_of, wait_until
from tests.federation.deployment import LONG_S, SITES, WORDS, Warm, words
from tests.federation.test_deployment import rows

pytestmark = pytest.mark.faults
DEADLINE_S = 40.0


def below(process, command: str) -> psutil.Process | None:
    """The first descendant of a process whose command line holds `command`."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if command in " ".join(child.cmdline()):
                return child
    return None


def test_rounds_close_without_failed_clients_which_can_return(place):
    """Round 2: site 0 has a bad row, SuperNode 1 gets kill -9. Round 3: site 2 hangs. Later rounds have all clients.

    A stopped site keeps its round open, so that each fault happens in its round on a machine of any speed.
    """
    (place.path / "runs").mkdir()
    deployment = Warm(place)
    process = deployment.run(
        run__num_server_rounds=5, fault__round_deadline_s=DEADLINE_S, train__local_steps=60
    )

    def wait_for_log(site: int, text: str) -> None:
        wait_until(lambda: text in deployment.site_log(site), LONG_S)

    wait_for_log(2, "round=1 train begins")
    deployment.sites[2].send_signal(signal.SIGSTOP)
    wait_for_log(0, "round=1 train ends")
    deployment.file(0).write_text("{\n")
    deployment.sites[2].send_signal(signal.SIGCONT)
    deployment.wait_for_round(1)

    for site in (1, 2):
        deployment.sites[site].send_signal(signal.SIGSTOP)
    kill_tree(deployment.nodes[1].pid)
    deployment.nodes[1] = deployment.supernode(1)  # a new node to Flower
    deployment.sites[1].send_signal(signal.SIGCONT)
    wait_for_log(0, "DataError")
    deployment.file(0).write_text(rows(0))
    deployment.sites[2].send_signal(signal.SIGCONT)
    deployment.wait_for_round(2)

    deployment.sites[2].send_signal(signal.SIGSTOP)
    deployment.wait_for_round(3)
    deployment.sites[2].send_signal(signal.SIGCONT)  # it replies late
    assert process.wait(LONG_S) == 0, deployment.log()

    run = run_of(place.path)
    records = metrics_of(run)
    assert [r["participants"] for r in records[1:]] == [[0, 1, 2], [2], [0, 1], [0, 1, 2], [0, 1, 2]]
    second, hung = records[2]["failed"], records[3]["failed"]
    assert second["0"].startswith("DataError: ")
    silent = f"no answer within {DEADLINE_S:.0f} s"
    assert second["1"] == silent or "Node Unavailable" in second["1"]
    assert hung == {"2": silent}
    for text in ((run / "report.md").read_text(), deployment.log()):
        assert silent in text
        assert "DataError: " in text


def test_a_run_survives_sigterm_and_kills_of_its_processes(place):
    """SIGTERM, then kills of the ServerApp, the SuperLink and a SuperNode that the quorum needs; then it finishes."""
    (place.path / "runs").mkdir()
    deployment = Warm(place)
    options = {"run.num-server-rounds": 5, "train.local-steps": 60, "fault.min-replies": SITES,
            "fault.round-deadline-s": 400.0}  # fmt: skip
    reference = place.path / "whole"
    assert start({**WORDS, **options, "data.path": str(deployment.files)}, reference).ended() == 0

    process = deployment.run(**{k.replace(".", "__").replace("-", "_"): v for k, v in options.items()})
    wait_until(lambda: list((place.path / "runs").glob("*/checkpoints/00001/facts.json")), LONG_S)
    run = run_of(place.path)
    process.send_signal(signal.SIGTERM)  # not SIGINT, which a shell may make its background children ignore
    assert process.wait(LONG_S) == 128 + signal.SIGTERM
    assert "accord: stopped; " in deployment.log()
    wait_until(lambda: not below(deployment.link, "flwr-serverapp"))
    assert store.rounds(run / "checkpoints")[-1] < 5

    process = deployment.accord("resume", str(run))
    deployment.wait_for_round(2)
    server = below(deployment.link, "flwr-serverapp")
    assert server
    server.kill()
    assert process.wait(LONG_S) == 1
    assert f"accord resume {run} federation.superlink=deployment" in deployment.log()

    process = deployment.accord("resume", str(run))
    deployment.wait_for_round(3)
    kill_tree(deployment.link.pid)
    assert process.wait(LONG_S) == 1
    deployment.link = deployment.superlink()

    process = deployment.accord("resume", str(run))
    deployment.wait_for_round(4)
    kill_tree(deployment.nodes[1].pid)
    assert process.wait(LONG_S) == 1
    assert "accord: RoundFailed: round 5: 2 of 3 clients answered" in deployment.log()
    assert "client 1: Flower: Error: Node Unavailable" in deployment.log()  # long before the deadline
    assert "Traceback" not in deployment.log()
    assert json.loads((run / "manifest.json").read_text())["status"].startswith("failed: round 5")

    deployment.nodes[1] = deployment.supernode(1)
    assert deployment.accord("resume", str(run)).wait(LONG_S) == 0, deployment.log()
    assert files(run / "checkpoints") == files(run_of(reference) / "checkpoints")
    tensors = "adapter/adapter_model.safetensors"  # peft writes its configuration in any order
    assert (run / tensors).read_bytes() == (run_of(reference) / tensors).read_bytes()
    assert metrics_of(run) == metrics_of(run_of(reference))
    for site in range(SITES):
        actual, expected = (p / f"home-{site}" / "memory" for p in (place.path, reference))
        assert files(actual / run.name).items() >= files(expected / run_of(reference).name).items()


def test_a_resident_site_killed_in_training_returns_in_the_same_round(place):
    """kill -9 while it trains in round 2, then a restart: no client fails, and the bytes equal a simulation's."""
    (place.path / "runs").mkdir()
    resident, steps = Warm(place), 80
    process = resident.run(run__num_server_rounds=3, train__local_steps=steps)
    wait_until(lambda: "round=2 train begins" in resident.site_log(1), LONG_S)
    resident.sites[1].kill()
    resident.sites[1].wait()
    assert "round=2 train ends" not in resident.site_log(1)
    resident.sites[1] = resident.site(1)
    assert process.wait(LONG_S) == 0, resident.log()
    more = [f"train.local-steps={steps}", "run.num-server-rounds=3", f"data.path={resident.files}"]
    run, simulated = run_of(place.path), whole([*words(), *more], place.path / "whole")
    assert files(run / "adapter") == files(simulated / "adapter")
    assert metrics_of(run) == metrics_of(simulated)
    assert not any(json.loads(line)["failed"] for line in (run / "metrics.jsonl").read_text().splitlines())
    assert json.loads((run / "manifest.json").read_text())["base_loads"] == {"0": 1, "1": 2, "2": 1}
