"""kill -9 of each kind of process on four hosts, at random points: after a restart, the same adapter."""

import contextlib
import random
import subprocess
import time
from collections.abc import Callable, Sequence

import psutil
import pytest

from tests.faults.federation import files
from tests.federation.conftest import Place
from tests.federation.hosts import allowed
from tests.federation.test_hosts import SITES, Guide

pytestmark = pytest.mark.skipif(not allowed(), reason="network namespaces are not allowed here")
# Every update is required: a round without one is not closed but repeated by `accord resume`.
WORDS = "own-files.toml strategy.name=scaffold strategy.min-available-nodes=3 run.num-server-rounds=3 eval.every=0"
EVERYONE = "fault.min-fraction=1.0 fault.round-deadline-s=60"
KINDS = ("superlink", "serverapp", "supernode", "clientapp", "site")
MESSAGES = 18  # handled by three sites in an undisturbed run: hello, two evaluations, three rounds
TRIES = 8


def points(kinds: Sequence[str]) -> list[tuple[str, int, str]]:
    """For each kill: the kind of process, the number of the message before it, the site."""
    rng = random.Random(11)
    early = {"clientapp": MESSAGES - 2 * len(SITES)}  # a later message must reach its site
    return [
        (kind, rng.randrange(1, early.get(kind, MESSAGES)), SITES[n % len(SITES)])
        for n, kind in enumerate(kinds)
    ]


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_a_site_and_the_superlink_can_be_killed(place):
    survive(place, points(("site", "superlink")))


@pytest.mark.hosts
@pytest.mark.timeout(7200)
def test_any_one_process_can_be_killed_at_any_point(place):
    survive(place, points(KINDS * 2))


def survive(place: Place, kills: Sequence[tuple[str, int, str]]) -> None:
    """Do run after run in one federation, with a kill in each; every adapter must equal the undisturbed run's."""
    guide = Guide(place)
    try:
        guide.until("accord run")
        expected = finish(guide, "undisturbed", lambda begun: None)
        for kind, point, site in kills:
            killed: list[psutil.Process] = []
            adapter = finish(guide, f"{kind}-{point}", killer(guide, kind, point, site, killed))
            assert killed, f"no {kind} was running at message {point}"
            assert adapter == expected, f"{kind} killed at message {point}: another adapter"
    finally:
        guide.hosts.end()


def killer(
    guide: Guide, kind: str, point: int, site: str, killed: list[psutil.Process]
) -> Callable[[int], None]:
    """A function of the number of messages begun, which kills once and restarts a process without a supervisor."""

    def kill_once(begun: int) -> None:
        if begun < point or killed:
            return
        victim = find(guide, kind, site)
        if victim is None:  # a ClientApp is short-lived: take the next one
            return
        victim.kill()
        killed.append(victim)
        if kind == "superlink":
            guide.start("server", "accord start kits/server")()
        elif kind == "site":
            guide.start(site, f"accord site {site}/site.toml")()

    return kill_once


def find(guide: Guide, kind: str, site: str) -> psutil.Process | None:
    if kind == "superlink":
        return psutil.Process(guide.services["server: accord start kits/server"].pid)
    if kind == "site":
        return psutil.Process(guide.services[f"{site}: accord site {site}/site.toml"].pid)
    if kind == "serverapp":  # also one of a killed SuperLink, because it still takes tasks
        processes = [p for p in guide.hosts.place.alive() if "flwr-serverapp" in line(p)]
        return max(processes, key=lambda p: p.create_time(), default=None)
    start = guide.services[f"{site}: accord start {site}"].pid
    if kind == "supernode":
        return below(start, lambda line: "node.py" in line and "--superlink" in line)
    return below(start, lambda line: "node.py" in line and "--fork" in line, is_fork=True)


def line(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def below(pid: int, matches: Callable[[str], bool], is_fork: bool = False) -> psutil.Process | None:
    """The first descendant with a matching command line; is_fork: its parent must have the same command line."""
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            line, parent = process.cmdline(), process.parent()
            if matches(" ".join(line)) and (not is_fork or (parent and parent.cmdline() == line)):
                return process
    return None


def finish(guide: Guide, name: str, on_progress) -> dict[str, bytes]:
    """Do a run to its end, with resumes as needed; returns the files of its adapter."""
    hosts, folder = guide.hosts, guide.hosts.home("server") / name
    before, began = begun(guide), time.monotonic()
    link = "export FLWR_HOME=$PWD/kits/server/flwr; exec accord"
    arguments = f"run {WORDS} {EVERYONE} run.dir={name}"
    for attempt in range(TRIES):
        log = f"{name}-{attempt}.log"
        with (hosts.log / log).open("w") as out:
            process = subprocess.Popen(
                hosts.command("server", f"{link} {arguments} federation.superlink=clinics"),
                env={**guide.hosts.place.env, **hosts.environment("server")}, stdout=out, stderr=out,
            )  # fmt: skip
        while process.poll() is None:
            on_progress(begun(guide) - before)
            time.sleep(0.05)
            assert time.monotonic() - began < 900, f"{name}\n{hosts.logs()}"
        if process.returncode == 0:
            print(f"{name}: {attempt} resumes, {time.monotonic() - began:.0f} s", flush=True)
            (run,) = folder.iterdir()
            return files(run / "adapter")
        if configs := list(folder.glob("*/config.toml")):
            arguments = f"resume {configs[0].parent}"
        time.sleep(5)
    raise AssertionError(f"{name} did not finish in {TRIES} tries\n{hosts.logs()}")


def begun(guide: Guide) -> int:
    """The number of messages that the sites have begun to handle so far."""
    return sum(
        guide.hosts.log_text(p.name).count(" begins: ") for p in guide.hosts.log.glob("*-accord-site-*.log")
    )
