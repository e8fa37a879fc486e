"""Connect to a site's server as gRPC will: through this machine's proxy, or directly."""

import base64
import http.client
import os
import socket
import urllib.parse

from cli.machine.environment import proxy_for
from cli.machine.processes import environment


def proxy_of(host: str) -> str:
    """Return the variable that names the SuperNode's proxy for `host`; "" for a direct connection, as on loopback."""
    return proxy_for(environment(), host)


def reach(host: str, port: int, timeout_s: float) -> socket.socket:
    """Return a connection to the server, through the proxy if gRPC uses one. Raises OSError if there is no answer."""
    variable = proxy_of(host)
    if not variable:
        return socket.create_connection((host, port), timeout=timeout_s)
    proxy = urllib.parse.urlsplit(os.environ[variable])
    tunnel = http.client.HTTPConnection(proxy.hostname or "", proxy.port or 80, timeout=timeout_s)
    headers = {}
    if proxy.username:
        user = f"{urllib.parse.unquote(proxy.username)}:{urllib.parse.unquote(proxy.password or '')}"
        headers = {"Proxy-Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}
    tunnel.set_tunnel(host, port, headers)
    try:
        tunnel.connect()
    except OSError as error:
        raise ConnectionError(
            f"through the proxy of {variable}: {error}; add {host} to no_proxy for a direct connection"
        ) from error
    return tunnel.sock
