"""kill -9 of each kind of process of a federation on four hosts, at drawn points; restarted: the same adapter."""

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
# Every update counts: a round that lacks one is not closed but done again by `accord resume`.
WORDS = "own-files.toml strategy.name=scaffold strategy.min-available-nodes=3 run.num-server-rounds=3 eval.every=0"
EVERYONE = "fault.min-fraction=1.0 fault.round-deadline-s=60"
KINDS = ("superlink", "serverapp", "supernode", "clientapp", "site")
MESSAGES = 18  # that three sites begin in an undisturbed run: hello, two evaluations, three rounds
TRIES = 8


def points(kinds: Sequence[str]) -> list[tuple[str, int, str]]:
    """Kind of process, message begun before it is killed, site."""
    draw = random.Random(11)
    early = {"clientapp": MESSAGES - 2 * len(SITES)}  # it must come once more to its site
    return [
        (kind, draw.randrange(1, early.get(kind, MESSAGES)), SITES[n % len(SITES)])
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
    """Run after run in one federation that goes on living, a kill in each; the adapter is the undisturbed run's."""
    guide = Guide(place)
    try:
        guide.until("accord run")
        want = finish(guide, "undisturbed", lambda begun: None)
        for kind, point, site in kills:
            killed: list[psutil.Process] = []
            got = finish(guide, f"{kind}-{point}", killer(guide, kind, point, site, killed))
            assert killed, f"no {kind} was there to be killed at message {point}"
            assert got == want, f"{kind} killed at message {point}: another adapter"
    finally:
        guide.hosts.end()


def killer(
    guide: Guide, kind: str, point: int, site: str, killed: list[psutil.Process]
) -> Callable[[int], None]:
    """A function of the messages begun so far, which kills once and starts again what does not restart itself."""

    def look(begun: int) -> None:
        if begun < point or killed:
            return
        victim = find(guide, kind, site)
        if victim is None:  # a ClientApp lives for a moment: take the next one
            return
        victim.kill()
        killed.append(victim)
        if kind == "superlink":
            guide.start("server", "accord start kits/server")()
        elif kind == "site":
            guide.start(site, f"accord site {site}/site.toml")()

    return look


def find(guide: Guide, kind: str, site: str) -> psutil.Process | None:
    if kind == "superlink":
        return psutil.Process(guide.services["server: accord start kits/server"].pid)
    if kind == "site":
        return psutil.Process(guide.services[f"{site}: accord site {site}/site.toml"].pid)
    if kind == "serverapp":  # whoever started it: what a killed SuperLink leaves behind goes on taking tasks
        found = [p for p in guide.hosts.place.alive() if "flwr-serverapp" in line(p)]
        return max(found, key=lambda p: p.create_time(), default=None)
    start = guide.services[f"{site}: accord start {site}"].pid
    if kind == "supernode":
        return below(start, lambda words: "node.py" in words and "--superlink" in words)
    return below(start, lambda words: "node.py" in words and "--fork" in words, own_child=True)


def line(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def below(pid: int, wanted: Callable[[str], bool], own_child: bool = False) -> psutil.Process | None:
    """The process under `pid` with such a command line; own_child: that is a fork of another such process."""
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            line, parent = process.cmdline(), process.parent()
            if wanted(" ".join(line)) and (not own_child or (parent and parent.cmdline() == line)):
                return process
    return None


def finish(guide: Guide, name: str, look) -> dict[str, bytes]:
    """A run to its end, resumed as often as it needs; the files of its adapter."""
    hosts, folder = guide.hosts, guide.hosts.home("server") / name
    before, began = begun(guide), time.monotonic()
    link = "export FLWR_HOME=$PWD/kits/server/flwr; exec accord"
    words = f"run {WORDS} {EVERYONE} run.dir={name}"
    for attempt in range(TRIES):
        log = f"{name}-{attempt}.log"
        with (hosts.log / log).open("w") as out:
            going = subprocess.Popen(
                hosts.command("server", f"{link} {words} federation.superlink=clinics"),
                env={**guide.hosts.place.env, **hosts.environment("server")}, stdout=out, stderr=out,
            )  # fmt: skip
        while going.poll() is None:
            look(begun(guide) - before)
            time.sleep(0.05)
            assert time.monotonic() - began < 900, f"{name}\n{hosts.logs()}"
        if going.returncode == 0:
            print(f"{name}: {attempt} resumes, {time.monotonic() - began:.0f} s", flush=True)
            (run,) = folder.iterdir()
            return files(run / "adapter")
        if made := list(folder.glob("*/config.toml")):
            words = f"resume {made[0].parent}"
        time.sleep(5)
    raise AssertionError(f"{name} did not finish in {TRIES} tries\n{hosts.logs()}")


def begun(guide: Guide) -> int:
    """Messages that the sites have begun to work on so far."""
    return sum(
        guide.hosts.said(p.name).count(" begins: ") for p in guide.hosts.log.glob("*-accord-site-*.log")
    )
