"""The server's certificate: names, validity, and which one a site accepts."""

import contextlib
import socket
import ssl
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from cli.provision import certificates
from cli.provision.certificates import days_left, is_signed_by, names_of, read_certificate
from cli.site.supervise import NodeKit, check_server
from core.errors import ConfigError
from tests.cli.provision.kits import HEAD, SITES, make
from tests.federation.conftest import free_port


def test_the_servers_certificate_is_the_authoritys_and_names_every_host(tmp_path):
    make(tmp_path, 'control = "10.1.2.3:8000"\ndays = 90\n' + HEAD + SITES)
    server = tmp_path / "kits" / "server"
    certificate, authority = read_certificate(server / "server.crt"), read_certificate(server / "ca.crt")
    assert names_of(certificate) == {
        "fl.example.org", "192.0.2.7", "::1", "localhost", "127.0.0.1", "10.1.2.3",
    }  # fmt: skip
    assert 89 < days_left(certificate) <= 90
    assert is_signed_by(certificate, authority)
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_certificate_does_not_outlive_its_authority(tmp_path):
    make(tmp_path, "days = 90\nca-days = 10\n" + HEAD + SITES)
    assert days_left(read_certificate(tmp_path / "kits" / "server" / "server.crt")) <= 10


@pytest.fixture
def answered(tmp_path, monkeypatch):
    """A function that runs check_server at site `south` while a server answers with a certificate of the given kind."""

    def check(
        *, days: int = 365, names: tuple[str, ...] = ("127.0.0.1",), other_authority: bool = False
    ) -> None:
        port = free_port()
        text = f'name = "clinics"\nhosts = ["127.0.0.1"]\nfleet-port = {port}\n[sites.south]\n'
        (tmp_path / "other").mkdir()
        make(tmp_path, text)
        make(tmp_path / "other", text)
        kits = (tmp_path / "other" if other_authority else tmp_path) / "kits"
        monkeypatch.setattr(certificates, "BEHIND", timedelta(days=2))
        certificates.make_server(kits / "server", kits / "authority", names, days)
        with contextlib.closing(tls_server(kits / "server", port)):
            check_server(NodeKit.read(tmp_path / "kits" / "sites" / "south"))

    return check


def tls_server(kit: Path, port: int) -> socket.socket:
    """Accept one TLS connection with a kit's certificate; returns the listening socket."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(kit / "server.crt", kit / "server.key")
    listener = socket.create_server(("127.0.0.1", port))

    def accept() -> None:
        connection, _ = listener.accept()
        with contextlib.suppress(OSError):
            context.wrap_socket(connection, server_side=True).close()
        connection.close()

    threading.Thread(target=accept, daemon=True).start()
    return listener


def test_the_federations_own_server_is_accepted(answered):
    answered()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"days": -1}, "has expired; on the server: `accord provision FEDERATION.toml --renew`"),
        ({"other_authority": True}, "this kit's authority"),
        ({"names": ("127.0.0.2",)}, "is not for this address: add it to hosts in federation.toml"),
    ],
)
def test_another_certificate_is_refused_with_the_reason(answered, how, message):
    with pytest.raises(ConfigError) as refused:
        answered(**how)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_server_without_tls_is_refused_but_a_missing_one_is_only_reported(tmp_path):
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    make(tmp_path, f'name = "clinics"\nhosts = ["127.0.0.1"]\nfleet-port = {port}\n[sites.south]\n')
    south = NodeKit.read(tmp_path / "kits" / "sites" / "south")

    def plain() -> None:
        connection, _ = listener.accept()
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.close()

    thread = threading.Thread(target=plain)
    thread.start()
    with pytest.raises(ConfigError, match="does not speak TLS"):
        check_server(south)
    thread.join()
    listener.close()
    with pytest.raises(OSError, match="refused"):
        check_server(south)
