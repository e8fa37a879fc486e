"""Health of a container: `healthy.py superlink | site | node` exits 0 when that process does its work."""

import socket
import ssl
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

KIT = Path("/kit")
SILENT_S = 30  # a SuperNode at work is seen every second


def superlink() -> None:
    """Its control API answers with the federation's certificate, and its fleet API listens."""
    about = tomllib.loads((KIT / "kit.toml").read_text())
    trusted = ssl.create_default_context(cafile=str(KIT / "ca.crt"))
    urllib.request.urlopen(f"https://{about['control']}/health", timeout=3, context=trusted)
    socket.create_connection(("127.0.0.1", int(about["fleet"].rpartition(":")[2])), timeout=3).close()


def site() -> None:
    """It listens on its socket."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(3)
        line.connect("/run/accord/site.sock")


def node() -> None:
    """The server has let it in, and it was alive a moment ago."""
    silent_s = time.time() - Path("/state/node.seen").stat().st_mtime
    if silent_s > SILENT_S:
        raise TimeoutError(f"the SuperNode was last at work {silent_s:.0f} s ago")


if __name__ == "__main__":
    try:
        {"superlink": superlink, "site": site, "node": node}[sys.argv[1]]()
    except OSError as error:
        sys.exit(f"{sys.argv[1]}: {error}")
