"""Run docs/deployment.md, command by command, on four hosts with TLS, authenticated sites and a bad network."""

import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.faults.federation import files
from tests.federation import guide
from tests.federation.conftest import ROOT, Place, metrics_of, wait_until
from tests.federation.hosts import Hosts, allowed
from tests.federation.test_deployment import rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not allowed(), reason="network namespaces are not allowed here"),
]
SITES = ("north", "south", "west")
NAMES = {"fl.example.org": "server", **{f"{site}.example.org": site for site in SITES}}
UP = {"accord start kits/server": "Uvicorn running", "accord start": "SuperNode ID", "accord site": ": ready"}


class Guide:
    """The hosts of the guide, and its services by the command that starts them."""

    def __init__(self, place: Place) -> None:
        self.hosts = Hosts(place, NAMES)
        self.services: dict[str, subprocess.Popen] = {}
        for n, site in enumerate(SITES):
            (self.hosts.home(site) / "rows.jsonl").write_text(rows(n))

    def start(self, host: str, command: str) -> Callable[[], None]:
        """Start a service; returns a function that waits until the service is up."""
        log = re.sub(r"\W+", "-", f"{host} {command}") + ".log"
        sign = next(sign for begin, sign in UP.items() if command.startswith(begin))
        before = self.hosts.log_text(log).count(sign)
        process = self.services[f"{host}: {command}"] = self.hosts.start(host, command, log)

        def wait() -> None:
            wait_until(
                lambda: self.hosts.log_text(log).count(sign) > before or process.poll() is not None, 240
            )
            assert process.poll() is None, f"{host}: {command}\n{self.hosts.log_text(log)}"

        return wait

    def until(self, last: str) -> str:
        """Run all steps before the one whose commands hold `last`, and return that step's commands.

        The server waits until the services are up before its next command; sites run theirs in parallel.
        """
        starting = []
        for step in guide.steps():
            if step.host == "server" and not step.service:
                while starting:
                    starting.pop()()
            if step.file:
                (self.hosts.home(step.host) / step.file).write_text(step.text)
            elif step.service:
                starting.append(self.start(step.host, step.text))
            elif last in step.text:
                return step.text
            else:
                self.hosts.run(step.host, step.text)
        raise AssertionError(f"the guide has no step with {last!r}")


@pytest.fixture
def reader(place):
    guide = Guide(place)
    yield guide
    guide.hosts.end()


@pytest.mark.timeout(1200)
def test_the_guides_commands_give_the_simulations_adapter(reader, place):
    words = re.findall(r"^accord run (.*)", guide.GUIDE.read_text(), re.MULTILINE)[0].split()
    data = place.path / "rows"
    data.mkdir()
    for n in range(len(SITES)):
        (data / f"{n}.jsonl").write_text(rows(n))
    words = [word for word in words if not word.startswith(("federation.", "model.name="))]
    words = ["run", *words, f"data.path={data}", "federation.num-supernodes=3"]
    simulation = place.start(sys.executable, str(ROOT / "accord"), *words, log="simulation.log")

    step = re.sub(r" model\.name=\S+", "", reader.until("accord run"))  # the toy model: no host has a network
    reader.hosts.run("server", step, timeout=900)
    assert simulation.wait(300) == 0, (place.path / "simulation.log").read_text()
    home = reader.hosts.home("server")
    (deployed,), (simulated,) = (home / "runs").iterdir(), place.runs()
    assert files(deployed / "adapter") == files(simulated / "adapter")
    assert metrics_of(deployed) == metrics_of(simulated)
    for host in ("server", *SITES):
        keys = [
            p
            for p in reader.hosts.home(host).rglob("*")
            if p.is_file() and b"PRIVATE KEY" in p.read_bytes()[:40]
        ]
        names = {p.name for p in keys if "kits/sites" not in str(p)}
        assert names == ({"ca.key", "server.key"} if host == "server" else {"node.key"})
    assert not (home / "kits" / "sites" / "west" / "node.key").exists()
    west = (reader.hosts.home("west") / "west" / "node.key").read_bytes()
    assert not [p for p in home.rglob("*") if p.is_file() and west in p.read_bytes()]
    marked = [p for p in home.rglob("*") if p.is_file() and b"marker-7f3a" in p.read_bytes()]
    assert not marked, "a private row left its site"
