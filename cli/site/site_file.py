"""SITE.toml: the settings of a resident site process, which the server cannot change."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cli.machine.environment import LOOPBACK
from cli.machine.settings import read_setting
from client_app.node import Node
from core.addresses import split_address
from core.errors import ConfigError
from core.files import read_toml
from core.tables import read_table
from core.types import Scalar
from tasks.data.clients.own_file import own_source

MAX_MESSAGE_MB = 2048  # a message's length is a 32-bit integer
MAX_IDLE_S = 1e9  # longer waits overflow the clock


@dataclass(frozen=True)
class SiteFile:
    """The contents of SITE.toml. Its keys are the fields in kebab case; paths are relative to the file's folder."""

    address: str  # unix:///run/accord/site.sock, or 127.0.0.1:PORT with a token-file
    partition_id: int
    num_partitions: int
    name: str = ""  # shown with its number in terminals and reports; `accord provision` writes it
    data_path: str = ""  # the site's own private rows; "": its share of the source that a run names
    data_source: str = ""  # the data source that reads data_path; "": the one that its ending names
    state_dir: str = ""  # caches and private memory; "": client.state-dir of a run, $ACCORD_HOME or ~/.accord
    policy: str = ""  # a policy.toml; "": everything is allowed
    socket_mode: str = (
        "0600"  # of a unix socket: 0600, or 0660 if the SuperNode runs as another user of the same group
    )
    token_file: str = ""  # on loopback: file with a secret; the SuperNode's site-token names it too
    max_message_mb: int = 1024  # larger messages are refused unread
    log_format: str = "text"  # text | json, one line per record on standard error
    metrics_port: int = 0  # port for Prometheus, on loopback; 0: none
    idle_s: float = 900.0  # the base model is freed after so many seconds without a message

    @staticmethod
    def read(path: Path, overrides: Sequence[str] = ()) -> "SiteFile":
        """Read the file and apply KEY=VALUE overrides. Raises ConfigError, in one line, if anything is wrong."""
        settings = read_toml(path)
        for override in overrides:
            key, value = read_setting(override, {}, f"KEY=VALUE after {path}")
            settings[key] = value
        site = read_table(SiteFile, settings, str(path))._with_absolute_paths(path.resolve().parent)
        site.check()
        return site

    @property
    def facts(self) -> dict[str, Scalar]:
        """The site's facts as a SuperNode's node config holds them."""
        return {
            "partition-id": self.partition_id,
            "num-partitions": self.num_partitions,
            "data-path": self.data_path,
            "data-source": self.data_source,
            "state-dir": self.state_dir,
            "site-name": self.name,
        }

    @property
    def socket(self) -> Path | None:
        """The path of the unix socket, or None on loopback."""
        return Path(self.address.removeprefix("unix:")) if self.address.startswith("unix:") else None

    def check(self) -> None:
        """Raise ConfigError for a value that cannot work."""
        Node.read(self.facts)
        if self.data_path and not Path(self.data_path).exists():
            raise ConfigError(f"data-path = {self.data_path!r}: no such file")
        if self.data_path:
            own_source(self.data_path, self.data_source)
        if self.socket_mode not in ("0600", "0660"):
            raise ConfigError(f"socket-mode must be '0600' or '0660', got {self.socket_mode!r}")
        if self.log_format not in ("text", "json"):
            raise ConfigError(f"log-format must be 'text' or 'json', got {self.log_format!r}")
        if not 0 <= self.metrics_port < 65536:
            raise ConfigError(f"metrics-port must be from 0 (none) to 65535, got {self.metrics_port}")
        if not 0 < self.max_message_mb < MAX_MESSAGE_MB or not 0 < self.idle_s < MAX_IDLE_S:
            raise ConfigError(
                f"max-message-mb and idle-s must be above 0 and below {MAX_MESSAGE_MB} and {MAX_IDLE_S:g}, "
                f"got {self.max_message_mb} and {self.idle_s}"
            )
        if self.socket:
            if len(os.fsencode(self.socket)) > 100:
                raise ConfigError(
                    f"address = {self.address!r}: a unix socket's path may have at most 100 bytes"
                )
            return
        if not self._is_on_loopback():
            raise ConfigError(
                f"address must be unix:///PATH.sock or 127.0.0.1:PORT, got {self.address!r}: a site process serves "
                "only the SuperNode on the same machine"
            )
        if not self.token_file:
            raise ConfigError(
                f"address = {self.address!r}: every user of this machine can reach it; set token-file, or use "
                "unix:///PATH.sock"
            )

    def _is_on_loopback(self) -> bool:
        try:
            return split_address(self.address)[0] in LOOPBACK
        except ConfigError:
            return False

    def token(self) -> str:
        """Return the secret of a site on loopback; "" on a unix socket, which file permissions protect."""
        if self.socket:
            return ""
        path = Path(self.token_file)
        try:
            text, mode = path.read_text("ascii").strip(), path.stat().st_mode
        except OSError as error:
            raise ConfigError(f"token-file = {self.token_file!r}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"token-file = {self.token_file!r} must hold ASCII text only") from error
        if len(text) < 16:
            raise ConfigError(f"token-file = {self.token_file!r} must hold at least 16 characters")
        if mode & 0o007:
            raise ConfigError(f"token-file = {self.token_file!r} is accessible to every user; chmod 600 it")
        return text

    def _with_absolute_paths(self, folder: Path) -> "SiteFile":
        """Return the settings with paths relative to `folder` made absolute."""

        def absolute(text: str) -> str:
            return str(folder / Path(text).expanduser()) if text else ""

        address = f"unix:{absolute(self.address.removeprefix('unix:'))}" if self.socket else self.address
        paths = {
            name: absolute(getattr(self, name)) for name in ("data_path", "state_dir", "policy", "token_file")
        }
        return replace(self, address=address, **paths)
