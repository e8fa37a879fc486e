"""Health check of a container: `healthy.py superlink | site | node` exits with 0 if that process works.

It runs every few seconds, outside of Accord's environment (`python -IS`), and so imports the standard library alone.
"""

import socket
import ssl
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

KIT = Path("/kit")
SILENT_S = 30  # a working SuperNode touches its file every second


def superlink() -> None:
    """Check that the control API answers with the federation's certificate and the fleet API listens."""
    kit = tomllib.loads((KIT / "kit.toml").read_text())
    tls_context = ssl.create_default_context(cafile=str(KIT / "ca.crt"))
    urllib.request.urlopen(f"https://{kit['control']}/health", timeout=3, context=tls_context)
    socket.create_connection(("127.0.0.1", int(kit["fleet"].rpartition(":")[2])), timeout=3).close()


def site() -> None:
    """Check that the site listens on its socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(3)
        client.connect("/run/accord/site.sock")


def node() -> None:
    """Check that the server has accepted the SuperNode and that it was active a moment ago."""
    silent_s = time.time() - Path("/state/node.seen").stat().st_mtime
    if silent_s > SILENT_S:
        raise TimeoutError(f"the SuperNode was last active {silent_s:.0f} s ago")


if __name__ == "__main__":
    try:
        {"superlink": superlink, "site": site, "node": node}[sys.argv[1]]()
    except OSError as error:
        sys.exit(f"{sys.argv[1]}: {error}")
