"""SITE.toml: what a resident site process knows of itself; the server has no say in it."""

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from client_app.site import Node
from core.errors import ConfigError
from core.files import read_toml
from core.types import Scalar

MOST_MB = 2048  # a message's length is an int of 32 bits
MOST_S = 1e9  # what a clock can wait for
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class SiteFile:
    """Its keys are the fields in kebab case; paths are relative to the file's folder."""

    address: str = ""  # unix:///run/accord/site.sock, or 127.0.0.1:PORT with a token-file
    partition_id: int = -1
    num_partitions: int = 0
    name: str = ""  # what terminals and reports call it beside its number; `accord provision` writes it
    data_path: str = ""  # its own private rows; "": its share of the source that a run names
    state_dir: str = ""  # caches and private memory; "": client.state-dir of a run, $ACCORD_HOME or ~/.accord
    policy: str = ""  # a policy.toml; "": whatever a run asks for
    socket_mode: str = "0600"  # of a unix socket: 0600, or 0660 for a SuperNode of the same group
    token_file: str = ""  # on loopback: a secret that the SuperNode's site-token names as well
    max_message_mb: int = 1024  # a larger message is refused unread
    log_format: str = "text"  # text | json, a line each on standard error
    metrics_port: int = 0  # where Prometheus may ask, on the loopback; 0: nowhere
    idle_s: float = 900.0  # after so long without a message the base model is let go of

    @staticmethod
    def read(path: Path, words: Sequence[str] = ()) -> "SiteFile":
        """The file with KEY=VALUE words over it; ConfigError, one line, for whatever is wrong with it."""
        found = read_toml(path)
        for word in words:
            key, separator, text = word.partition("=")
            if not separator:
                raise ConfigError(f"expected KEY=VALUE after {path}, got {word!r}")
            found[key] = _value(text)
        site = SiteFile(**_checked(found, str(path)))._placed(path.resolve().parent)
        site.check()
        return site

    @property
    def facts(self) -> dict[str, Scalar]:
        """As a SuperNode's node config would say it."""
        return {
            "partition-id": self.partition_id,
            "num-partitions": self.num_partitions,
            "data-path": self.data_path,
            "state-dir": self.state_dir,
            "site-name": self.name,
        }

    @property
    def socket(self) -> Path | None:
        """The unix socket, or None on loopback."""
        return Path(self.address.removeprefix("unix:")) if self.address.startswith("unix:") else None

    def check(self) -> None:
        Node.read(self.facts)
        if self.data_path and not Path(self.data_path).exists():
            raise ConfigError(f"data-path = {self.data_path!r}: no such file")
        if self.socket_mode not in ("0600", "0660"):
            raise ConfigError(f"socket-mode must be '0600' or '0660', got {self.socket_mode!r}")
        if self.log_format not in ("text", "json"):
            raise ConfigError(f"log-format must be 'text' or 'json', got {self.log_format!r}")
        if not 0 <= self.metrics_port < 65536:
            raise ConfigError(f"metrics-port must be a port, or 0 for none, got {self.metrics_port}")
        if not 0 < self.max_message_mb < MOST_MB or not 0 < self.idle_s < MOST_S:
            raise ConfigError(
                f"max-message-mb and idle-s must be above 0, below {MOST_MB} and {MOST_S:g}, "
                f"got {self.max_message_mb} and {self.idle_s}"
            )
        if self.socket:
            if len(os.fsencode(self.socket)) > 100:
                raise ConfigError(f"address = {self.address!r}: a unix socket's path has at most 100 bytes")
            return
        host, _, port = self.address.rpartition(":")
        if host not in LOOPBACK or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(
                f"address must be unix:///PATH.sock or 127.0.0.1:PORT, got {self.address!r}: a site's process is for "
                "the SuperNode beside it and is never reached from another machine"
            )
        if not self.token_file:
            raise ConfigError(
                f"address = {self.address!r}: every user of this machine can reach it; name a token-file, or use "
                "unix:///PATH.sock"
            )

    def token(self) -> str:
        """The secret of a site on loopback; "" on a unix socket, which the file system guards."""
        if self.socket:
            return ""
        path = Path(self.token_file)
        try:
            text, mode = path.read_text("ascii").strip(), path.stat().st_mode
        except OSError as error:
            raise ConfigError(f"token-file = {self.token_file!r}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"token-file = {self.token_file!r} holds more than ASCII text") from error
        if len(text) < 16:
            raise ConfigError(f"token-file = {self.token_file!r} holds less than 16 characters")
        if mode & 0o007:
            raise ConfigError(f"token-file = {self.token_file!r} can be read by everybody; chmod 600 it")
        return text

    def _placed(self, folder: Path) -> "SiteFile":
        """With absolute paths."""

        def place(text: str) -> str:
            return str(folder / Path(text).expanduser()) if text else ""

        address = f"unix:{place(self.address.removeprefix('unix:'))}" if self.socket else self.address
        paths = {
            name: place(getattr(self, name)) for name in ("data_path", "state_dir", "policy", "token_file")
        }
        return replace(self, address=address, **paths)


def _checked(found: Mapping[str, Any], where: str) -> dict[str, Any]:  # Any: the outside world
    defaults = {f.name.replace("_", "-"): f.default for f in fields(SiteFile)}
    out = {}
    for key, value in found.items():
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"have: {', '.join(defaults)}"
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
        want = type(defaults[key])
        if want is float and type(value) is int:
            value = float(value)
        if type(value) is not want or "\0" in str(value):
            raise ConfigError(f"{where}: {key} must be {want.__name__}, got {value!r}")
        out[key.replace("-", "_")] = value
    for key in ("address", "partition-id", "num-partitions"):
        if key not in found:
            raise ConfigError(f"{where}: {key} is missing")
    return out


def _value(text: str) -> Scalar:
    """A word as TOML reads it, else a string."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text
