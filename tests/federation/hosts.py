"""Hosts as network namespaces on a slow, lossy link; each has its own home folder and name.

A process of the tests holds one end of every link (a TAP device), delays each frame and drops some, as `tc netem` does,
for kernels without netem. All layers above are the kernel's own.
"""

import contextlib
import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.federation.conftest import BIN, ROOT, Place, kill_tree, wait_until

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x2, 0x1000
DELAY_S, LOSS = 0.05, 0.01
SCP = """#!{python}
# scp between the home folders of hosts: copies files without ssh
import shutil, sys
from pathlib import Path
*_, source, target = sys.argv
host, _, path = target.partition(":")
home = Path({root!r}) / host
target = home / path
if Path(source).is_dir():
    shutil.copytree(source, target / Path(source).name)
else:
    shutil.copy(source, target)
"""


def allowed() -> bool:
    """Whether network namespaces and links can be made on this machine."""
    if sys.platform != "linux" or os.geteuid() or not shutil.which("ip") or not Path("/dev/net/tun").exists():
        return False
    name = f"accord-try-{os.getpid()}"
    succeeded = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    if succeeded:
        subprocess.run(["ip", "netns", "del", name], check=True)
    return succeeded


class Hosts:
    """The hosts. names: the guide's name of each host by its DNS name; the first has address 10.77.0.1, and so on."""

    def __init__(self, place: Place, names: dict[str, str]) -> None:
        self.place, self.names = place, names
        self.root = Path(
            tempfile.mkdtemp(prefix="accord-hosts-")
        )  # short, because a site's socket is below it
        self.log = place.path / "log"
        self.log.mkdir()
        shims = place.path / "shims"
        shims.mkdir()
        (shims / "scp").write_text(SCP.format(python=sys.executable, root=str(self.root)))
        (shims / "scp").chmod(0o755)
        self.path = f"{shims}{os.pathsep}{BIN}{os.pathsep}{os.environ['PATH']}"
        short = f"ac{os.getpid()}"
        self.space = {host: f"{short}-{host}" for host in names.values()}
        self.tap = {host: f"{short}t{n}" for n, host in enumerate(names.values())}
        etc_hosts = (
            "".join(f"10.77.0.{n} {name}\n" for n, name in enumerate(names, 1)) + "127.0.0.1 localhost\n"
        )
        for name, host in names.items():
            (self.root / name).mkdir(parents=True)
            _ip("netns", "add", self.space[host])
            etc = Path("/etc/netns") / self.space[host]
            etc.mkdir(parents=True)
            (etc / "hosts").write_text(etc_hosts)
        self.link = place.start(sys.executable, "-m", "tests.federation.hosts", *self.tap.values(), log="link.log",
                                PYTHONPATH=str(ROOT))  # fmt: skip
        wait_until(lambda: "ready" in (place.path / "link.log").read_text())
        for n, host in enumerate(names.values(), 1):
            space, tap = self.space[host], self.tap[host]
            _ip("link", "set", tap, "netns", space)
            _ip("-n", space, "address", "add", f"10.77.0.{n}/24", "dev", tap)
            _ip("-n", space, "link", "set", tap, "up")
            _ip("-n", space, "link", "set", "lo", "up")

    def home(self, host: str) -> Path:
        return self.root / next(name for name, h in self.names.items() if h == host)

    def command(self, host: str, script: str) -> list[str]:
        inside = f"cd {self.home(host)}; {script}"
        return ["ip", "netns", "exec", self.space[host], "bash", "-ec", inside]

    def environment(self, host: str) -> dict[str, str]:
        return {"PATH": self.path, "HOME": str(self.home(host)), "ACCORD_HOME": self.place.env["ACCORD_HOME"]}

    def run(self, host: str, script: str, timeout: float = 500) -> str:
        """Run a script to its end; returns its stdout."""
        env = {**self.place.env, **self.environment(host)}
        env.pop("FLWR_HOME", None)
        process = subprocess.run(
            self.command(host, script), env=env, capture_output=True, text=True, timeout=timeout
        )
        assert process.returncode == 0, f"{host}: {script}\n{process.stdout}{process.stderr}\n{self.logs()}"
        return process.stdout

    def start(self, host: str, script: str, log: str) -> subprocess.Popen:
        """Start a service; its output goes to log/."""
        return self.place.start(
            *self.command(host, f"exec {script}"), log=f"log/{log}", **self.environment(host)
        )

    def log_text(self, log: str) -> str:
        path = self.log / log
        return path.read_text(errors="replace") if path.exists() else ""

    def logs(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.read_text(errors='replace')[-1500:]}" for p in self.log.iterdir())

    def end(self) -> None:
        self.place.end()
        for process in self.place.alive():
            with contextlib.suppress(psutil.NoSuchProcess):
                kill_tree(process.pid)
        for space in self.space.values():
            subprocess.run(["ip", "netns", "del", space], check=False)
            shutil.rmtree(Path("/etc/netns") / space, ignore_errors=True)
        shutil.rmtree(self.root, ignore_errors=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def switch(names: list[str]) -> None:
    """Switch frames between TAP devices, delay each by DELAY_S and drop the share LOSS of them."""
    ports: dict[int, str] = {}
    for name in names:
        port = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(port, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
        ports[port] = name
    print("ready", flush=True)
    rng, number = random.Random(7), 0
    ports_by_address: dict[bytes, int] = {}
    waiting: list[tuple[float, int, int, bytes]] = []
    poll = select.epoll()
    for port in ports:
        poll.register(port, select.EPOLLIN)
    parent = os.getppid()
    while os.getppid() == parent:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 1.0
        for port, _ in poll.poll(pause):
            with contextlib.suppress(OSError):
                frame = os.read(port, 65536)
                number += 1
                ports_by_address[frame[6:12]] = port
                if rng.random() >= LOSS:
                    heapq.heappush(waiting, (time.monotonic() + DELAY_S, number, port, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, source, frame = heapq.heappop(waiting)
            target = ports_by_address.get(frame[0:6])
            for port in [target] if target is not None else [p for p in ports if p != source]:
                with contextlib.suppress(OSError):  # the link is not up yet, or no longer
                    os.write(port, frame)


if __name__ == "__main__":
    switch(sys.argv[1:])
