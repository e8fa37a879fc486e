"""A deployment as processes: a SuperLink and three SuperNodes with their own rows, with or without resident sites."""

import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from core import store
from tests.faults.federation import run_of
from tests.federation.conftest import BIN, ROOT, ROUGH, Place, free_port, healthy, wait_until
from tests.federation.test_deployment import rows

SITES = 3
WORDS = {
    "data.source": "jsonl",
    "train.local-steps": 2,
    "train.per-device-batch-size": 4,
    "strategy.name": "scaffold",
    "strategy.min-available-nodes": SITES,
    "eval.every": 0,
}
LONG_S = 300


def words() -> list[str]:
    """The arguments of a simulation with the same settings."""
    return [*(f"{k}={v}" for k, v in WORDS.items()), f"federation.num-supernodes={SITES}"]


class Deployment:
    """A SuperLink with a database and three SuperNodes with their own files; each process can be killed."""

    SUPERNODE = (str(BIN / "flower-supernode"),)
    SHELL: Mapping[str, str] = {}  # additional variables of its environment

    def __init__(self, place: Place) -> None:
        self.place, self.control, self.fleet = place, free_port(), free_port()
        self.files = place.path / "sites"
        self.files.mkdir()
        for site in range(SITES):
            self.file(site).write_text(rows(site))
        (place.path / "flwr").mkdir(exist_ok=True)
        (place.path / "flwr" / "config.toml").write_text(
            '[superlink]\ndefault = "deployment"\n[superlink.deployment]\n'
            f'address = "127.0.0.1:{self.control}"\ninsecure = true\n'
        )
        self.link = self.superlink()
        self.nodes = [self.supernode(site) for site in range(SITES)]

    def file(self, site: int) -> Path:
        return self.files / f"site-{site}.jsonl"

    def superlink(self) -> psutil.Popen:
        process = self.place.start(
            str(BIN / "flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(self.control),
            "--fleet-api-address", f"127.0.0.1:{self.fleet}", "--database", str(self.place.path / "state.db"),
            log="superlink.log", ACCORD_HOME=str(self.place.path / "server"),
        )  # fmt: skip
        wait_until(lambda: healthy(self.control))
        return process

    def node_config(self, site: int) -> str:
        return f"partition-id={site} num-partitions={SITES} data-path='{self.file(site)}'"

    def supernode(self, site: int) -> psutil.Popen:
        return self.place.start(
            *self.SUPERNODE, "--insecure", "--superlink", f"127.0.0.1:{self.fleet}",
            "--host", "127.0.0.1", "--port", str(free_port()), "--node-config", self.node_config(site),
            log=f"site-{site}.log", ACCORD_HOME=str(self.place.path / f"home-{site}"), **self.SHELL,
        )  # fmt: skip

    def accord(self, *arguments: str, log: str = "accord.log"):
        """Start `accord` for this deployment in the background."""
        command = [sys.executable, str(ROOT / "accord"), *arguments, "federation.superlink=deployment"]
        return self.place.start(*command, log=log)

    def run(self, **overrides: object):
        """Start `accord run`; in the names of the overrides, __ stands for a dot and _ for a hyphen."""
        keys = {**WORDS, **{k.replace("__", ".").replace("_", "-"): v for k, v in overrides.items()}}
        return self.accord("run", *(f"{k}={v}" for k, v in keys.items()))

    def log(self) -> str:
        return (self.place.path / "accord.log").read_text()

    def wait_for_round(self, rnd: int) -> None:
        wait_until(lambda: store.rounds(run_of(self.place.path) / "checkpoints")[-1:] >= [rnd], LONG_S)


class Resident(Deployment):
    """A deployment with `accord site` processes; the SuperNodes know only their addresses."""

    def __init__(self, place: Place) -> None:
        self.sites = {}
        super().__init__(place)

    def node_config(self, site: int) -> str:
        return f"site='unix:{self.place.path}/{site}.sock'"

    def supernode(self, site: int) -> psutil.Popen:
        if site not in self.sites:
            self.sites[site] = self.site(site)
        return super().supernode(site)

    def site(self, site: int) -> psutil.Popen:
        file = self.place.path / f"site-{site}.toml"
        file.write_text(
            f'address = "unix:{site}.sock"\npartition-id = {site}\nnum-partitions = {SITES}\n'
            f'data-path = "sites/{self.file(site).name}"\nstate-dir = "home-{site}"\n'
        )
        return self.place.start(
            sys.executable, str(ROOT / "accord"), "site", str(file), log=f"resident-{site}.log", **ROUGH
        )

    def site_log(self, site: int) -> str:
        return (self.place.path / f"resident-{site}.log").read_text()


class Warm(Resident):
    """Resident sites with `accord node` as SuperNodes."""

    SUPERNODE = (sys.executable, str(ROOT / "accord"), "node")
    SHELL = ROUGH
