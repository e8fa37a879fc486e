"""`accord start KIT` at a site: its SuperNode, started again when it ends, with a clear line when it is refused.

Flower's SuperNode tries on for ever without a word when the certificate has another name, and says the same of a key
that nobody registered as of one whose SuperNode died a minute ago. So the server's certificate is looked at before
each start, and how a SuperNode ended is put into words. No torch here: this process lives as long as the site.
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

from cli.machine.environment import cleaned, die_with_parent
from cli.machine.keys import check_private, fingerprint_of
from cli.machine.processes import check_port, environment, read_kit
from cli.site.connectivity import reach
from core.errors import AccordError, ConfigError
from core.files import read_toml

PAUSE_S = 5.0
PATIENCE_S = 30.0  # for a SuperNode that was asked to stop
REMEMBERED_S = 65.0  # twice Flower's heartbeat: so long a SuperLink takes a dead SuperNode for a living one
SPREAD_S = 300  # between the clocks, as Flower's signatures allow
PROBE_S = 10.0
WORDS = (
    "address",
    "token-file",
    "state-dir",
)  # of site.toml: where `accord site` listens, and a place of its own
LINES = (
    200  # of a SuperNode that are looked at when it has ended: Flower's word for it, then its stack traces
)
CERTIFICATE = {  # OpenSSL's verify codes
    9: "is not valid yet: compare the clocks of both machines",
    10: "has expired; on the server: `accord provision FEDERATION.toml --renew`, then start it again",
    62: "is not for that host name: name it in hosts of federation.toml and `accord provision --renew`",
    64: "is not for that address: name it in hosts of federation.toml and `accord provision --renew`",
}


@dataclass(frozen=True)
class NodeKit:
    folder: Path
    name: str
    host: str
    port: str
    runtime_port: int
    site: dict[str, Any]  # site.toml

    @staticmethod
    def read(folder: Path, words: Sequence[str] = ()) -> "NodeKit":
        """words: KEY=VALUE over its site.toml, of the keys that a SuperNode asks for."""
        about = read_kit(folder, "site")
        site = read_toml(folder / "site.toml")
        for word in words:
            key, separator, value = word.partition("=")
            if not separator or key not in WORDS:
                raise ConfigError(
                    f"expected {' | '.join(f'{k}=...' for k in WORDS)} after {folder}, got {word!r}"
                )
            site[key] = value
        if not site.get("address") and not {"partition-id", "num-partitions"} <= site.keys():
            raise ConfigError(f"{folder / 'site.toml'}: address is missing")
        host, _, port = str(about["superlink"]).rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        return NodeKit(folder.resolve(), about["name"], host, port, about["runtime-port"], site)

    @property
    def superlink(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def state(self) -> Path:
        return self.place(str(self.site.get("state-dir") or "state"))

    def place(self, path: str) -> Path:
        """A path of site.toml, which begins at the kit."""
        return self.folder / Path(path).expanduser()

    @property
    def node_config(self) -> str:
        """Where `accord site` listens; without an address, what the ClientApp has to know itself."""
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
    """Starts the SuperNode, and again, until it is told to stop or the server refuses it."""

    def __init__(self, kit: NodeKit) -> None:
        self.kit = kit
        self.stopping = False  # set by a signal, which may come at any line: no lock
        self.seen = kit.state / "node.seen"  # its time: when this site's SuperNode was last at work

    def run(self) -> None:
        """Returns after SIGTERM or SIGINT; ConfigError for what does not mend itself."""
        check_files(self.kit)
        check_free(self.kit)
        self.kit.state.mkdir(parents=True, exist_ok=True)
        for note in cleaned(os.environ)[1]:
            say(f"{self.kit.name}: {note}")
        while self._reach():
            said, worked = self._once()
            if self.stopping:
                return
            say(
                f"{self.kit.name}: the SuperNode ended: {self.reason(said, worked=worked)}; again in {PAUSE_S:g} s"
            )
            self._rest(PAUSE_S)

    def _reach(self) -> bool:
        """Wait until the server answers, with a certificate of this federation; False when told to stop."""
        told = False
        while not self.stopping:
            try:
                check_server(self.kit)
            except OSError as error:
                if not told:
                    say(
                        f"{self.kit.name}: no answer from {self.kit.superlink} ({error}): is the server up, "
                        "is its port open for this machine? Trying on"
                    )
                told = True
                self._rest(PAUSE_S)
                continue
            say(f"{self.kit.name}: {self.kit.superlink} answers, with a certificate of this federation")
            return True
        return False

    def _once(self) -> tuple[str, bool]:
        """One life of a SuperNode; its last lines, and whether the server had let it in."""
        process = subprocess.Popen(
            self.kit.command,
            env=environment(FLWR_HOME=str(self.kit.state / "flwr"), ACCORD_HOME=str(self.kit.state)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            preexec_fn=die_with_parent,
        )
        last: deque[str] = deque(maxlen=LINES)
        reader = threading.Thread(target=_pass_on, args=(process, last), daemon=True)
        reader.start()
        working = False
        while process.poll() is None and not self.stopping:
            self._rest(1.0)
            working = working or any("SuperNode ID:" in line for line in list(last))
            if working:
                self.seen.touch()
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE_S)
            process.kill()
        process.wait()
        reader.join(2.0)  # what it started may hold the pipe a little longer
        return "".join(last), working

    def reason(self, said: str, *, worked: bool) -> str:
        """Why it ended, from its last lines; ConfigError when starting it again would not help."""
        if "Failed to activate SuperNode" in said:
            if self._seen_ago_s() < REMEMBERED_S:
                return "the server still takes the one before for alive"
            raise ConfigError(
                f"{self.kit.superlink} does not take the key of {self.kit.name}, {self._key()}: it is not registered "
                f"there (on the server: sites/{self.kit.name}.pub and `accord register`), or it is at work elsewhere"
            )
        if "SuperNode terminated gracefully" in said and not worked:
            raise ConfigError(
                f"{self.kit.superlink} refuses the signature of {self.kit.name}: the clocks of the two machines "
                f"differ by more than {SPREAD_S} s, or node.key was changed"
            )
        if "SuperNode terminated gracefully" in said:
            return "the server refused its key"
        if "handshake" in said:
            return "no TLS connection"
        errors = [line for line in said.splitlines() if "ERROR" in line or "Error" in line]
        return errors[-1].strip()[:200] if errors else "no reason given"

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.stopping and time.monotonic() < until:
            time.sleep(0.2)

    def _seen_ago_s(self) -> float:
        return time.time() - self.seen.stat().st_mtime if self.seen.is_file() else float("inf")

    def _key(self) -> str:
        return fingerprint_of(self.kit.folder / "node.key")


def check_files(kit: NodeKit) -> None:
    """ConfigError unless the kit holds a key of its own, and a certificate to trust."""
    if not (kit.folder / "node.key").is_file():
        raise ConfigError(
            f"{kit.folder} holds no node.key: make it here with `accord provision --site-key {kit.folder}` and send "
            "node.pub to the server"
        )
    check_private(kit.folder / "node.key")


def check_free(kit: NodeKit) -> None:
    """ConfigError unless its SuperNode can listen where its ClientApps will look for it."""
    hint = f"is a SuperNode already there? `port` of [sites.{kit.name}] in federation.toml gives it another"
    check_port("127.0.0.1", kit.runtime_port, hint)


def check_server(kit: NodeKit) -> None:
    """ConfigError when whoever answers is not this federation's server; OSError when nobody answers."""
    where = f"{kit.name}: the certificate of {kit.superlink}"
    try:
        context = ssl.create_default_context(cafile=str(kit.folder / "ca.crt"))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{kit.folder / 'ca.crt'} cannot be read as a certificate: {error}") from error
    context.set_alpn_protocols(["h2"])
    with reach(kit.host, int(kit.port), PROBE_S) as raw:
        try:
            context.wrap_socket(raw, server_hostname=kit.host).close()
        except ssl.SSLCertVerificationError as error:
            other = f"is not of this kit's authority ({error.verify_message}): is that another federation's server?"
            raise ConfigError(f"{where} {CERTIFICATE.get(error.verify_code, other)}") from error
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError) as error:
            raise ConnectionError("it hangs up") from error
        except ssl.SSLError as error:
            raise ConfigError(
                f"{kit.superlink} does not speak TLS ({error.reason}): is that the SuperLink?"
            ) from error


def say(line: str) -> None:
    print(f"accord: {line}", flush=True)


def _pass_on(process: subprocess.Popen[str], last: deque[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        last.append(line)
        print(line, end="", flush=True)


def main(folder: str, *words: str) -> None:
    try:
        supervisor = Supervisor(NodeKit.read(Path(folder), words))

        def stop(_number: int, _frame: FrameType | None) -> None:
            supervisor.stopping = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        supervisor.run()
    except AccordError as error:
        print(f"accord: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
