"""How a site's supervisor reaches its server where gRPC would take a proxy."""

import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from cli.site.connectivity import proxy_of, reach

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_proxy", "NO_PROXY", "no_grpc_proxy")


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def proxy() -> Iterator[tuple[int, Future[bytes]]]:
    """A proxy for one connection: its port, and what it was asked; the far end is an echo."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def serve() -> bytes:
            server.settimeout(10)
            line, _ = server.accept()
            with line:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += line.recv(4096)
                line.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                line.sendall(line.recv(5))
                return request

        yield server.getsockname()[1], pool.submit(serve)


def test_the_server_is_reached_through_the_proxy_that_grpc_takes(proxy, monkeypatch):
    port, asked = proxy
    monkeypatch.setenv("https_proxy", f"http://me:s%20t@127.0.0.1:{port}")
    assert proxy_of("fl.example.org") == "https_proxy"
    with reach("fl.example.org", 9092, 5) as line:
        line.sendall(b"hello")
        assert line.recv(5) == b"hello"
    assert b"CONNECT fl.example.org:9092 HTTP/1." in asked.result()
    assert b"Proxy-Authorization: Basic bWU6cyB0\r\n" in asked.result()


def test_the_loopback_is_reached_directly(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with socket.create_server(("127.0.0.1", 0)) as server:
        reach("127.0.0.1", server.getsockname()[1], 5).close()


def test_a_proxy_that_fails_is_named_without_its_password(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"through the proxy of http_proxy: .*no_proxy") as failed:
        reach("fl.example.org", 9092, 5)
    assert "secret" not in str(failed.value)


@pytest.mark.parametrize("url", ["socks5://127.0.0.1:9", "127.0.0.1:9", "https://127.0.0.1:9"])
def test_where_grpc_knows_no_way_through_a_proxy_it_goes_directly(monkeypatch, url):
    monkeypatch.setenv("http_proxy", url)
    assert proxy_of("fl.example.org") == ""
