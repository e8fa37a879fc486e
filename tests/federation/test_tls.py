"""Kits on the loopback: TLS, authenticated SuperNodes, resident sites. Results equal a simulation's byte for byte."""

import signal
import sys
from pathlib import Path

import pytest

from cli.provision.federation import read_federation
from cli.provision.kits import provision
from tests.faults.federation import files, whole
from tests.federation.conftest import ROOT, Place, free_port, metrics_of, wait_until
from tests.federation.test_deployment import rows

pytestmark = pytest.mark.slow
WORDS = ["own-files.toml", "run.num-server-rounds=2", "train.local-steps=2", "train.per-device-batch-size=4"]
SITES = ("north", "south")


def federation(place: Place) -> Path:
    """Make kits for two sites and for one that is never registered; returns their folder."""
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


class Service:
    """`accord ARGUMENTS` in the background, and its log."""

    def __init__(self, place: Place, kit: Path, *arguments: str) -> None:
        self.log = place.path / f"{kit.name}-{arguments[0]}.log"
        self.process = place.start(sys.executable, str(ROOT / "accord"), *arguments, log=self.log.name)

    def output(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.output() or self.process.poll() is not None, 120)
        assert self.process.poll() is None, self.output()


def test_a_run_of_kits_equals_the_simulation_and_an_unregistered_site_is_refused(place):
    kits = federation(place)
    server, homes = kits / "server", [kits / "sites" / site for site in SITES]
    link = Service(place, server, "start", str(server))
    sites = [Service(place, home, "site", str(home / "site.toml")) for home in homes]
    link.wait_for("Uvicorn running")
    assert place.accord("register", str(server)).stdout.count("is registered") == 2
    nodes = [Service(place, home, "start", str(home)) for home in homes]
    stranger = place.accord("start", str(kits / "sites" / "stranger"), check=False)
    assert stranger.returncode == 2
    assert stranger.stderr.splitlines()[-1].startswith("accord: 127.0.0.1:"), stranger.stderr
    assert "refuses the key of stranger, SHA256:" in stranger.stderr
    assert "it is not registered there" in stranger.stderr
    for site, node in zip(sites, nodes, strict=True):
        site.wait_for(": ready")
        node.wait_for("SuperNode ID")

    data = place.path / "rows"
    data.mkdir()
    for n in range(len(SITES)):
        (data / f"{n}.jsonl").write_text(rows(n))
    simulated = whole([*WORDS, f"data.path={data}", "federation.num-supernodes=2"], place.path / "whole")
    place.env["FLWR_HOME"] = str(server / "flwr")
    place.accord("run", *WORDS, "federation.superlink=loopback", "run.dir=deployed", timeout=290)
    (deployed,) = (place.path / "deployed").iterdir()
    assert files(deployed / "adapter") == files(simulated / "adapter")
    assert metrics_of(deployed) == metrics_of(simulated)

    north, south = nodes
    key = (server / "sites" / "south.pub").rename(place.path / "south.pub")
    assert any(
        line.startswith("south ") and "is removed" in line
        for line in place.accord("register", str(server)).stdout.splitlines()
    )
    key.rename(server / "sites" / "south.pub")
    assert "this site needs another key" in place.accord("register", str(server)).stdout
    wait_until(lambda: "the server refused its key" in south.output())
    north.process.send_signal(signal.SIGTERM)
    assert north.process.wait(40) == 0, "SIGTERM did not end the SuperNode cleanly"
