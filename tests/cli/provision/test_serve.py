"""The SuperLink of a server's kit is not started when its certificate, key or port would fail."""

import socket
from datetime import timedelta

import pytest

from cli.provision import certificates, serve
from cli.site.supervise import NodeKit, check_files
from core.errors import ConfigError
from tests.cli.provision.kits import HEAD, SITES, make
from tests.federation.conftest import free_port


def test_a_superlink_is_not_started_with_an_expired_certificate(tmp_path, monkeypatch):
    make(tmp_path)
    kits = tmp_path / "kits"
    monkeypatch.setattr(certificates, "BEHIND", timedelta(days=2))
    certificates.make_server(kits / "server", kits / "authority", ["127.0.0.1"], -1)
    with pytest.raises(ConfigError, match=r"server\.crt expired on .*--renew"):
        serve.superlink(kits / "server")


def test_a_superlink_is_not_started_with_another_authoritys_certificate(tmp_path):
    make(tmp_path)
    (tmp_path / "other").mkdir()
    make(tmp_path / "other")
    server = tmp_path / "kits" / "server"
    (server / "ca.crt").write_bytes((tmp_path / "other" / "kits" / "server" / "ca.crt").read_bytes())
    with pytest.raises(ConfigError, match=r"server\.crt .*ca\.crt.*provision again"):
        serve.superlink(server)


def test_a_superlink_is_not_started_with_a_key_that_others_can_read(tmp_path):
    make(tmp_path)
    server = tmp_path / "kits" / "server"
    (server / "server.key").chmod(0o644)
    with pytest.raises(ConfigError, match=r"server\.key can be read by others.*chmod 600"):
        serve.superlink(server)


def test_a_sites_kit_is_not_a_servers_kit_and_needs_a_key(tmp_path):
    make(tmp_path)
    north = tmp_path / "kits" / "sites" / "north"
    with pytest.raises(ConfigError, match=r"north is the kit of a site, expected .*server"):
        serve.superlink(north)
    (north / "node.key").unlink()
    with pytest.raises(ConfigError, match="`accord provision --site-key"):
        check_files(NodeKit.read(north))


def test_a_port_in_use_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        make(tmp_path, f'control = "127.0.0.1:{port}"\nfleet-port = {free_port()}\n' + HEAD + SITES)
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            serve.superlink(tmp_path / "kits" / "server")


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "127.0.0.1:abc", "127.0.0.1", "127.0.0.1:0"])
def test_an_invalid_port_is_refused(address):
    with pytest.raises(ConfigError, match="HOST:PORT"):
        serve.check_free(address)
