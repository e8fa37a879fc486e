"""HOST:PORT addresses, with an IPv6 host in brackets. Imports little, because a relay starts for every message."""

from core.errors import ConfigError


def split_address(text: str, key: str = "address") -> tuple[str, int]:
    """Return the host, without brackets, and the port. Raises ConfigError, which names `key`, for another form."""
    host, _, port = text.rpartition(":")
    if is_bracketed := host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    is_port = port.isascii() and port.isdecimal() and 0 < int(port) < 65536
    if not host or not is_port or is_bracketed != (":" in host):
        raise ConfigError(
            f'{key} must be "HOST:PORT", with a port from 1 to 65535 and an IPv6 host in brackets, got {text!r}'
        )
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """Return HOST:PORT, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
