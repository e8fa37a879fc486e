"""`accord start KIT` at a site: run its SuperNode, restart it when it ends, and explain why it was refused.

If the server's certificate has another name, Flower's SuperNode retries for ever without a message; and it reports an
unregistered key in the same way as one whose SuperNode died a minute ago. So this module checks the server's
certificate before each start, and derives from the SuperNode's last lines why it ended. It does not import torch: the
process lives as long as the site.
"""

import contextlib
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from cli.machine.environment import cleaned
from cli.machine.keys import check_private, fingerprint_of
from cli.machine.processes import KIT, check_port, environment, read_kit, start_piped
from cli.machine.settings import read_setting
from cli.site.connectivity import reach
from core.addresses import join_address, split_address
from core.errors import AccordError, ConfigError
from core.files import read_toml

PAUSE_S = 5.0
STOP_TIMEOUT_S = 30.0  # for a SuperNode to end after SIGTERM
REMEMBERED_S = 65.0  # twice Flower's heartbeat: how long a SuperLink takes a dead SuperNode for alive
MAX_CLOCK_DIFFERENCE_S = 300  # that Flower's signatures allow
PROBE_S = 10.0
OVERRIDABLE = {"address": "", "token-file": "", "state-dir": ""}  # keys of site.toml that a SuperNode reads
LAST_LINES = 200  # of a SuperNode's output that are kept: Flower's reason comes before its stack traces
CERTIFICATE = {  # OpenSSL's verify codes
    9: "is not valid yet: compare the clocks of both machines",
    10: "has expired; on the server: `accord provision FEDERATION.toml --renew`, then start it again",
    62: "is not for this host name: add it to hosts in federation.toml and `accord provision --renew`",
    64: "is not for this address: add it to hosts in federation.toml and `accord provision --renew`",
}


@dataclass(frozen=True)
class NodeKit:
    """A site's kit as its SuperNode uses it."""

    folder: Path
    name: str
    host: str
    port: int
    runtime_port: int
    site: dict[str, Any]  # the settings of site.toml

    @staticmethod
    def read(folder: Path, overrides: Sequence[str] = ()) -> "NodeKit":
        """Read a kit and apply KEY=VALUE overrides, of OVERRIDABLE keys, to its site.toml. Raises ConfigError."""
        about = read_kit(folder, "site")
        site = read_toml(folder / "site.toml")
        expected = f"{' | '.join(f'{key}=...' for key in OVERRIDABLE)} after {folder}"
        for override in overrides:
            key, value = read_setting(override, OVERRIDABLE, expected)
            if key not in OVERRIDABLE:
                raise ConfigError(f"expected {expected}, got {override!r}")
            site[key] = value
        if not site.get("address") and not {"partition-id", "num-partitions"} <= site.keys():
            raise ConfigError(f"{folder / 'site.toml'}: address is missing")
        host, port = split_address(about["superlink"], f"{folder / KIT}: superlink")
        return NodeKit(folder.resolve(), about["name"], host, port, about["runtime-port"], site)

    @property
    def superlink(self) -> str:
        return join_address(self.host, self.port)

    @property
    def state(self) -> Path:
        return self.place(str(self.site.get("state-dir") or "state"))

    def place(self, path: str) -> Path:
        """Return a path of site.toml, which is relative to the kit."""
        return self.folder / Path(path).expanduser()

    @property
    def node_config(self) -> str:
        """The SuperNode's node config: where `accord site` listens; without an address, the client's facts."""
        if address := str(self.site.get("address", "")):
            if address.startswith("unix:"):
                address = f"unix:{self.place(address.removeprefix('unix:'))}"
            facts: dict[str, Any] = {"site": address}
            if token := self.site.get("token-file"):
                facts["site-token"] = str(self.place(token))
        else:
            facts = {key: self.site[key] for key in ("partition-id", "num-partitions")}
            facts["state-dir"] = str(self.state)
            facts["site-name"] = self.name
            if path := self.site.get("data-path"):
                facts["data-path"] = str(self.place(path))
                if source := self.site.get("data-source"):
                    facts["data-source"] = source
        return " ".join(f"{key}={value!r}" for key, value in facts.items())

    @property
    def command(self) -> list[str]:
        return [
            *(sys.executable, str(Path(__file__).with_name("node.py"))),
            *("--superlink", self.superlink),
            *("--root-certificates", str(self.folder / "ca.crt")),
            *("--auth-supernode-private-key", str(self.folder / "node.key")),
            *("--host", "127.0.0.1", "--port", str(self.runtime_port)),
            *("--node-config", self.node_config),
        ]


class Supervisor:
    """Runs the SuperNode and restarts it until a signal stops it or the server refuses it."""

    def __init__(self, kit: NodeKit) -> None:
        self.kit = kit
        self.stopping = False  # set by a signal handler, so it is not guarded by a lock
        self.last_active = kit.state / "node.seen"  # its modification time: when the SuperNode last worked

    def run(self) -> None:
        """Run until SIGTERM or SIGINT. Raises ConfigError for a fault that a restart cannot cure."""
        check_files(self.kit)
        check_free(self.kit)
        self.kit.state.mkdir(parents=True, exist_ok=True)
        for note in cleaned(os.environ)[1]:
            say(f"{self.kit.name}: {note}")
        while self._reach():
            output, worked = self._run_supernode()
            if self.stopping:
                return
            say(
                f"{self.kit.name}: the SuperNode ended: {self.reason(output, worked=worked)}; restart in {PAUSE_S:g} s"
            )
            self._rest(PAUSE_S)

    def _reach(self) -> bool:
        """Wait until the server answers with a certificate of this federation. Returns False if stopped before."""
        reported = False
        while not self.stopping:
            try:
                check_server(self.kit)
            except OSError as error:
                if not reported:
                    say(
                        f"{self.kit.name}: no answer from {self.kit.superlink} ({error}): is the server running, and "
                        "is its port open to this machine? Retrying"
                    )
                reported = True
                self._rest(PAUSE_S)
                continue
            say(f"{self.kit.name}: {self.kit.superlink} answers with a certificate of this federation")
            return True
        return False

    def _run_supernode(self) -> tuple[str, bool]:
        """Run a SuperNode until it ends. Returns its last lines, and whether the server had accepted it."""
        process = start_piped(
            self.kit.command,
            environment(FLWR_HOME=str(self.kit.state / "flwr"), ACCORD_HOME=str(self.kit.state)),
        )
        last: deque[str] = deque(maxlen=LAST_LINES)
        reader = threading.Thread(target=_pass_on, args=(process, last), daemon=True)
        reader.start()
        working = False
        while process.poll() is None and not self.stopping:
            self._rest(1.0)
            working = working or any("SuperNode ID:" in line for line in list(last))
            if working:
                self.last_active.touch()
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            process.kill()
        process.wait()
        reader.join(2.0)  # its child processes may hold the pipe a little longer
        return "".join(last), working

    def reason(self, output: str, *, worked: bool) -> str:
        """Return why the SuperNode ended, from its last lines. Raises ConfigError if a restart would not help."""
        if "Failed to activate SuperNode" in output:
            if self._inactive_s() < REMEMBERED_S:
                return "the server still takes the previous SuperNode for alive"
            raise ConfigError(
                f"{self.kit.superlink} refuses the key of {self.kit.name}, {self._key()}: it is not registered "
                f"there (on the server: sites/{self.kit.name}.pub and `accord register`), or it is in use elsewhere"
            )
        if "SuperNode terminated gracefully" in output and not worked:
            raise ConfigError(
                f"{self.kit.superlink} refuses the signature of {self.kit.name}: the clocks of the two machines "
                f"differ by more than {MAX_CLOCK_DIFFERENCE_S} s, or node.key was changed"
            )
        if "SuperNode terminated gracefully" in output:
            return "the server refused its key"
        if "handshake" in output:
            return "no TLS connection"
        errors = [line for line in output.splitlines() if "ERROR" in line or "Error" in line]
        return errors[-1].strip()[:200] if errors else "no reason given"

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.stopping and time.monotonic() < until:
            time.sleep(0.2)

    def _inactive_s(self) -> float:
        """Return the seconds since this site's SuperNode last worked; infinite if it never did."""
        return time.time() - self.last_active.stat().st_mtime if self.last_active.is_file() else float("inf")

    def _key(self) -> str:
        return fingerprint_of(self.kit.folder / "node.key")


def check_files(kit: NodeKit) -> None:
    """Raise ConfigError unless the kit holds a private key that only its owner can read."""
    if not (kit.folder / "node.key").is_file():
        raise ConfigError(
            f"{kit.folder} holds no node.key: create it here with `accord provision --site-key {kit.folder}` and send "
            "node.pub to the server"
        )
    check_private(kit.folder / "node.key")


def check_free(kit: NodeKit) -> None:
    """Raise ConfigError unless the SuperNode can listen on the port that its ClientApps connect to."""
    hint = f"is a SuperNode running already? set another `port` in [sites.{kit.name}] of federation.toml"
    check_port("127.0.0.1", kit.runtime_port, hint)


def check_server(kit: NodeKit) -> None:
    """Check that the server answers with a certificate of this federation.

    Raises ConfigError if another server answers, OSError if none does.
    """
    where = f"{kit.name}: the certificate of {kit.superlink}"
    try:
        context = ssl.create_default_context(cafile=str(kit.folder / "ca.crt"))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{kit.folder / 'ca.crt'} cannot be read as a certificate: {error}") from error
    context.set_alpn_protocols(["h2"])
    with reach(kit.host, kit.port, PROBE_S) as raw:
        try:
            context.wrap_socket(raw, server_hostname=kit.host).close()
        except ssl.SSLCertVerificationError as error:
            fallback = f"is not signed by this kit's authority ({error.verify_message}): another federation's server?"
            raise ConfigError(f"{where} {CERTIFICATE.get(error.verify_code, fallback)}") from error
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError) as error:
            raise ConnectionError("the connection was closed") from error
        except ssl.SSLError as error:
            raise ConfigError(
                f"{kit.superlink} does not speak TLS ({error.reason}): is it the SuperLink?"
            ) from error


def say(line: str) -> None:
    print(f"accord: {line}", flush=True)


def _pass_on(process: subprocess.Popen[str], last: deque[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        last.append(line)
        print(line, end="", flush=True)


def main(folder: str, *overrides: str) -> None:
    """Run the supervisor of the kit in `folder`; exit status 2 after an error of the user or a refusal."""
    try:
        supervisor = Supervisor(NodeKit.read(Path(folder), overrides))

        def stop(_number: int, _frame: FrameType | None) -> None:
            supervisor.stopping = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        supervisor.run()
    except AccordError as error:
        print(f"accord: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
