"""Kits on loopback: TLS, authenticated SuperNodes and resident sites; the simulation's bytes; others are refused."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from server_app.provision.federation import read_federation
from server_app.provision.kits import provision
from tests.faults.test_crashes import files
from tests.federation.conftest import ROOT, Place, free_port, metrics_of, wait_until
from tests.federation.test_deployment import rows

pytestmark = pytest.mark.slow
WORDS = ["own-files.toml", "run.num-server-rounds=2", "train.local-steps=2", "train.per-device-batch-size=4"]
SITES = ("north", "south")


def federation(place: Place) -> Path:
    """Kits for two sites and one that is never let in; the folder they are in."""
    lines = [f'name = "loopback"\nhosts = ["127.0.0.1"]\nfleet-port = {free_port()}\nlisten = "127.0.0.1"']
    lines += [f'control = "127.0.0.1:{free_port()}"']
    lines += [f"[sites.{site}]\nport = {free_port()}" for site in (*SITES, "stranger")]
    file, out = place.path / "federation.toml", place.path / "kits"
    file.write_text("\n".join(lines))
    list(provision(read_federation(file), out))
    (out / "server" / "sites" / "stranger.pub").unlink()
    for n, site in enumerate(SITES):
        kit = out / "sites" / site
        (kit / "rows.jsonl").write_text(rows(n))
        with (kit / "site.toml").open("a") as text:
            text.write('data-path = "rows.jsonl"\n')
    return out


def start(place: Place, kit: Path, sign: str, *words: str) -> subprocess.Popen:
    log = f"{kit.name}-{words[0]}.log"
    process = place.start(sys.executable, str(ROOT / "accord.py"), *words, log=log)
    wait_until(lambda: sign in (place.path / log).read_text() or process.poll() is not None, 120)
    assert process.poll() is None, (place.path / log).read_text()
    return process


def test_a_run_of_kits_is_the_simulations_and_a_stranger_is_refused(place):
    kits = federation(place)
    start(place, kits / "server", "Uvicorn running", "start", str(kits / "server"))
    for site in SITES:
        start(place, kits / "sites" / site, ": ready", "site", str(kits / "sites" / site / "site.toml"))
    assert place.accord("register", str(kits / "server")).stdout.count("is let in from now on") == 2
    nodes = [
        start(place, kits / "sites" / s, "SuperNode ID", "start", str(kits / "sites" / s)) for s in SITES
    ]

    stranger = place.accord("start", str(kits / "sites" / "stranger"), check=False)
    assert stranger.returncode == 2
    assert stranger.stderr.splitlines()[-1].startswith("accord: 127.0.0.1:"), stranger.stderr
    assert "does not take the key of stranger, SHA256:" in stranger.stderr
    assert "it is not registered there" in stranger.stderr

    place.env["FLWR_HOME"] = str(kits / "server" / "flwr")
    place.accord("run", *WORDS, "federation.superlink=loopback", "run.dir=deployed", timeout=290)
    (deployed,) = (place.path / "deployed").iterdir()
    data = place.path / "rows"
    data.mkdir()
    for n in range(len(SITES)):
        (data / f"{n}.jsonl").write_text(rows(n))
    place.accord("run", *WORDS, f"data.path={data}", "federation.num-supernodes=2")
    (simulated,) = place.runs()
    assert files(deployed / "adapter") == files(simulated / "adapter")
    assert metrics_of(deployed) == metrics_of(simulated)

    (kits / "server" / "sites" / "south.pub").unlink()
    assert "south  SHA256:" in place.accord("register", str(kits / "server")).stdout
    wait_until(lambda: "the server refused its key" in (place.path / "south-start.log").read_text(), 60)
    nodes[0].send_signal(signal.SIGTERM)
    assert nodes[0].wait(40) == 0, "SIGTERM did not end it in peace"
