"""Kits: where each secret is, what a second run keeps, what is refused."""

import contextlib
import socket
import ssl
import stat
import subprocess
import threading
import tomllib
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from cli.machine.keys import fingerprint
from cli.provision import certificates, serve
from cli.provision.certificates import days_left, is_signed_by, names_of, read_certificate
from cli.provision.federation import read_federation
from cli.provision.kits import make_site_key, provision
from cli.site.site_file import SiteFile
from cli.site.supervise import NodeKit, Supervisor, check_files, check_server
from core.errors import ConfigError
from tests.federation.conftest import ROOT, free_port

HEAD = 'name = "clinics"\nhosts = ["fl.example.org", "192.0.2.7", "::1"]\n'
SITES = '[sites.north]\ndata-path = "/data/rows.jsonl"\n[sites.south]\n[sites.west]\nown-key = true\n'


def make(folder: Path, text: str = HEAD + SITES, **options) -> list[str]:
    """Make kits in folder/kits and return the printed lines."""
    (folder / "federation.toml").write_text(text)
    return list(provision(read_federation(folder / "federation.toml"), folder / "kits", **options))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def is_private(content: bytes) -> bool:
    return b"PRIVATE KEY" in content


def test_each_private_key_is_in_one_place_and_readable_by_its_owner_only(tmp_path):
    make(tmp_path)
    kits = tmp_path / "kits"
    private = {name for name, content in files(kits).items() if is_private(content)}
    assert private == {
        "authority/ca.key",
        "server/server.key",
        "sites/north/node.key",
        "sites/south/node.key",
    }
    assert {stat.S_IMODE((kits / name).stat().st_mode) for name in private} == {0o600}
    folders = [kits / "authority", kits / "server", *(kits / "sites").iterdir()]
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}


def test_a_kit_holds_nothing_of_another_site(tmp_path):
    make(tmp_path)
    for site, other in (("north", "south"), ("south", "north"), ("west", "north")):
        kit = files(tmp_path / "kits" / "sites" / site)
        key = (tmp_path / "kits" / "sites" / other / "node.key").read_bytes()
        assert not [name for name, content in kit.items() if key in content or other.encode() in content]


def test_a_site_that_makes_its_own_key_sends_only_the_public_half(tmp_path):
    output = make(tmp_path)
    server, west = tmp_path / "kits" / "server", tmp_path / "kits" / "sites" / "west"
    assert [line for line in output if line.startswith("west") and "--site-key" in line]
    with pytest.raises(ConfigError, match="`accord provision --site-key"):
        check_files(NodeKit.read(west))
    line = make_site_key(west)
    key = (west / "node.key").read_bytes()
    assert fingerprint(west / "node.pub") in line
    assert make_site_key(west) == line
    assert (west / "node.key").read_bytes() == key
    (server / "sites" / "west.pub").write_bytes((west / "node.pub").read_bytes())
    assert not [line for line in make(tmp_path) if line.startswith("west")]
    private = {name for name, content in files(server).items() if is_private(content)}
    assert private == {"server.key"}


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


def test_provisioning_again_changes_nothing(tmp_path):
    make(tmp_path)
    before = files(tmp_path / "kits")
    output = make(tmp_path)
    assert [line.split()[0] for line in output] == ["west"]  # its key is still missing
    assert files(tmp_path / "kits") == before


def test_a_new_site_does_not_get_the_number_of_a_former_one(tmp_path):
    make(tmp_path)
    kits = tmp_path / "kits"
    (kits / "sites" / "north" / "site.toml").write_text("partition-id = 0\nnum-partitions = 3\n# mine\n")
    before = files(kits)
    output = make(tmp_path, HEAD + SITES.replace("[sites.south]\n", "[sites.east]\n"))
    after = files(kits)
    assert any(line.startswith("south ") and "accord register" in line for line in output)
    assert {k: v for k, v in after.items() if is_private(v) and "/east/" not in k} == {
        k: v for k, v in before.items() if is_private(v)
    }
    assert b"# mine" in after["sites/north/site.toml"]
    assert tomllib.loads(after["server/sites.toml"].decode()) == {
        "north": 0,
        "south": 1,
        "west": 2,
        "east": 3,
    }
    assert tomllib.loads(after["sites/east/site.toml"].decode())["partition-id"] == 3
    assert "server/sites/south.pub" not in after


def test_a_key_that_was_moved_to_its_site_is_not_made_again(tmp_path):
    make(tmp_path)
    north = tmp_path / "kits" / "sites" / "north"
    public = (tmp_path / "kits" / "server" / "sites" / "north.pub").read_bytes()
    for path in north.iterdir():
        path.unlink()
    make(tmp_path)
    assert not (north / "node.key").exists()
    assert (tmp_path / "kits" / "server" / "sites" / "north.pub").read_bytes() == public


def test_renew_makes_a_new_certificate_under_the_same_authority(tmp_path):
    make(tmp_path)
    server = tmp_path / "kits" / "server"
    before = files(tmp_path / "kits")
    output = make(tmp_path, HEAD.replace('"::1"', '"new.example.org"') + SITES)
    assert any(
        line.startswith("server ") and "new.example.org" in line and "--renew" in line for line in output
    )
    make(tmp_path, HEAD.replace('"::1"', '"new.example.org"') + SITES, renew=True)
    assert "new.example.org" in names_of(read_certificate(server / "server.crt"))
    changed = {k for k, v in files(tmp_path / "kits").items() if v != before[k]}
    assert {"server/server.crt", "server/server.key"} <= changed
    assert not [k for k in changed if k.startswith("authority") or k.endswith((".pub", "node.key", "ca.crt"))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "a"\n[sites.b]\n', "expected hosts ="),
        ('name = "a"\nhosts = ["b"]\n', "[sites.north]"),
        ('hosts = ["b"]\n[sites.b]\n', "'name'"),
        (HEAD + "fleet-prot = 1\n" + SITES, "unknown key 'fleet-prot'; did you mean 'fleet-port'?"),
        (HEAD + 'fleet-port = "1"\n' + SITES, "fleet-port must be int, got '1'"),
        (HEAD + "fleet-port = 70000\n" + SITES, "fleet-port must be a port"),
        (HEAD + 'control = "8000"\n' + SITES, 'control must be "HOST:PORT"'),
        (HEAD + "[sites.North]\n", "got 'North'"),
        (HEAD + '[sites."../x"]\n', "got '../x'"),
        (HEAD + "[sites.a]\nown-kye = true\n", "[sites.a]: unknown key 'own-kye'; did you mean 'own-key'?"),
        (
            'name = "a"\nhosts = ["http://b"]\n[sites.b]\n',
            "hosts must hold host names and IP addresses, got 'http://b'",
        ),
        (HEAD + "days = 0\n" + SITES, "36500, got 0"),
        ("name = ", "is not TOML"),
        (HEAD + "days = 99999999999\n[sites.a]\n", "36500, got 99999999999"),
        (HEAD + 'control = "127.0.0.1:9092"\n[sites.a]\n', "9092"),
        (HEAD + 'control = "127.0.0.1:²"\n[sites.a]\n', "control must be"),
    ],
)
def test_a_wrong_federation_file_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(ConfigError) as refused:
        make(tmp_path, text)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "kits").exists()


def test_kits_of_another_federation_are_not_mixed_in(tmp_path):
    make(tmp_path)
    with pytest.raises(ConfigError, match=r"'clinics'.*'banks'.*--out"):
        make(tmp_path, HEAD.replace("clinics", "banks") + SITES)


def test_a_key_that_others_can_read_is_refused(tmp_path):
    make(tmp_path)
    north = tmp_path / "kits" / "sites" / "north"
    check_files(NodeKit.read(north))
    (north / "node.key").chmod(0o640)
    with pytest.raises(ConfigError, match=r"node\.key can be read by others.*chmod 600"):
        check_files(NodeKit.read(north))


def test_paths_in_site_toml_are_relative_to_the_kit(tmp_path):
    make(tmp_path)
    north = tmp_path / "kits" / "sites" / "north"
    assert NodeKit.read(north).node_config == f"site='unix:{north.resolve()}/site.sock'"
    assert (
        SiteFile.read(north / "site.toml", ["data-path=site.toml", "data-source=jsonl"]).address
        == f"unix:{north.resolve()}/site.sock"
    )
    (north / "site.toml").write_text('partition-id = 0\nnum-partitions = 3\ndata-path = "rows.jsonl"\n')
    assert f"data-path='{north.resolve() / 'rows.jsonl'}'" in NodeKit.read(north).node_config
    assert f"state-dir='{north.resolve() / 'state'}'" in NodeKit.read(north).node_config
    assert "site-name='north'" in NodeKit.read(north).node_config


def test_a_site_has_the_name_that_the_federation_gives_it(tmp_path):
    """Both with `accord site` and with a ClientApp that the SuperNode starts."""
    make(tmp_path)
    north = tmp_path / "kits" / "sites" / "north"
    assert (
        SiteFile.read(north / "site.toml", ["data-path=site.toml", "data-source=jsonl"]).facts["site-name"]
        == "north"
    )


def test_arguments_override_site_toml_for_a_supernode(tmp_path):
    make(tmp_path)
    north = tmp_path / "kits" / "sites" / "north"
    kit = NodeKit.read(north, ["address=unix:/run/accord/site.sock", "state-dir=/state"])
    assert kit.node_config == "site='unix:/run/accord/site.sock'"
    assert kit.state == Path("/state")
    for argument in ("adress=x", "data-path=/rows", "address"):
        with pytest.raises(ConfigError, match=f"address=.*north.*'{argument}'"):
            NodeKit.read(north, [argument])


def test_the_containers_sites_are_those_of_their_federation(tmp_path):
    """The paths in the kits are those of compose.yml's volumes and of healthy.py."""
    federation = read_federation(ROOT / "docker" / "federation.toml")
    list(provision(federation, tmp_path))
    compose, health = ((ROOT / "docker" / name).read_text() for name in ("compose.yml", "healthy.py"))
    for site in federation.sites:
        kit = NodeKit.read(tmp_path / "sites" / site.name)
        assert kit.node_config == "site='unix:/run/accord/site.sock'"
        assert str(kit.state) == "/state"
        assert (
            f"[kit-{site.name}:/kit:ro, socket-{site.name}:/run/accord, node-{site.name}:/state]" in compose
        )
        assert f"{site.name.upper()}:-" in compose
    assert "/run/accord/site.sock" in health
    assert "/state/node.seen" in health
    assert compose.count(":/kits/sites/") == len(federation.sites)


def test_systemd_accepts_the_units(tmp_path):
    make(tmp_path, 'program = "/bin/true"\n' + HEAD + SITES)
    units = sorted((tmp_path / "kits").rglob("*.service"))
    assert len(units) == 7
    try:
        result = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no systemd here")
    assert "accord" not in result.stderr, result.stderr


# --- certificates that a site rejects --------------------------------------------------


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


def test_a_port_that_another_supernode_uses_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        make(tmp_path, HEAD + f"[sites.north]\nport = {port}\n")
        with pytest.raises(
            ConfigError, match=rf"cannot listen on 127.0.0.1:{port}.*`port` in \[sites.north\]"
        ):
            Supervisor(NodeKit.read(tmp_path / "kits" / "sites" / "north")).run()


def test_a_kit_that_has_changed_has_to_be_sent_again(tmp_path):
    make(tmp_path, HEAD + "[sites.north]\n")
    assert make(tmp_path, HEAD + "[sites.north]\n") == []
    (line,) = make(tmp_path, HEAD + "[sites.north]\nport = 9095\n")
    assert line.startswith(f"north  {tmp_path}/kits/sites/north/kit.toml ")
    assert "send it to the site" in line


def test_a_port_in_use_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        make(tmp_path, f'control = "127.0.0.1:{port}"\nfleet-port = {free_port()}\n' + HEAD + SITES)
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            serve.superlink(tmp_path / "kits" / "server")


# --- why a SuperNode ended --------------------------------------------------------------

ENDED = "INFO :      SuperNode terminated gracefully.\n"
INACTIVE = "[code: 2004] Failed to activate SuperNode.\n"


@pytest.mark.parametrize(
    ("output", "worked", "was_active", "message"),
    [
        (INACTIVE, False, False, "refuses the key of north, SHA256:"),
        (INACTIVE, False, True, "the server still takes the previous SuperNode for alive"),
        (ENDED, False, False, "refuses the signature of north: the clocks of the two machines"),
        (ENDED + "Traceback ...\nRuntimeError: x\n", True, True, "the server refused its key"),
        ("SSL/TLS handshake error detected.\n", False, False, "no TLS connection"),
        ("a line\nValueError: this one\nthe last\n", True, True, "ValueError: this one"),
        ("", True, True, "no reason given"),
    ],
)
def test_the_reason_of_a_supernodes_end_is_reported(tmp_path, output, worked, was_active, message):
    make(tmp_path)
    supervisor = Supervisor(NodeKit.read(tmp_path / "kits" / "sites" / "north"))
    supervisor.last_active.parent.mkdir()
    if was_active:
        supervisor.last_active.touch()
    try:
        got = supervisor.reason(output, worked=worked)
    except ConfigError as error:
        got = str(error)
    assert message in got
    assert "\n" not in got


KINDS_OF_DAMAGE = {
    "bytes": lambda path: path.write_bytes(b"\xff\x00"),
    "empty": lambda path: path.write_bytes(b""),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("how", KINDS_OF_DAMAGE)
@pytest.mark.parametrize(
    "name", ["server/kit.toml", "server/sites.toml", "authority/ca.key", "authority/ca.crt"]
)
def test_damaged_kits_are_refused_by_name_and_keep_authority_and_numbers(tmp_path, name, how):
    """A site with the number of another would get its private memory, and all sites reject a new authority."""
    make(tmp_path)
    path, before = tmp_path / "kits" / name, files(tmp_path / "kits")
    KINDS_OF_DAMAGE[how](path)
    if (name, how) != ("server/kit.toml", "gone"):  # it can be made again from federation.toml
        with pytest.raises(ConfigError, match=rf"{name}[^\n]*$"):
            make(tmp_path, HEAD + "[sites.south]\n[sites.north]\n", renew=True)
    after = files(tmp_path / "kits")
    unchanged = {"authority/ca.key", "authority/ca.crt", "server/sites.toml"} - {name}
    assert {n: after[n] for n in unchanged} == {n: before[n] for n in unchanged}


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, how) for name in ("kit.toml", "server.crt", "ca.crt") for how in KINDS_OF_DAMAGE),
        *(("server.key", how) for how in ("folder", "gone")),  # flwr itself checks its contents
    ],
)
def test_a_damaged_kit_of_the_server_is_refused_by_name(tmp_path, name, how):
    make(tmp_path)
    kit = tmp_path / "kits" / "server"
    KINDS_OF_DAMAGE[how](kit / name)
    with pytest.raises(ConfigError, match=name):
        serve.superlink(kit)


@pytest.mark.parametrize("how", KINDS_OF_DAMAGE)
@pytest.mark.parametrize("name", ["kit.toml", "site.toml"])
def test_a_damaged_kit_of_a_site_is_refused_by_name(tmp_path, name, how):
    make(tmp_path)
    kit = tmp_path / "kits" / "sites" / "north"
    KINDS_OF_DAMAGE[how](kit / name)
    with pytest.raises(ConfigError, match=name):
        NodeKit.read(kit).node_config  # noqa: B018 - read by `accord start`


@pytest.mark.parametrize("text", ["\x00", "x = 1", "in = 3\nout = []", "out = []\n[in]\nnorth = 3"])
def test_a_damaged_list_of_registered_sites_is_refused_by_name(tmp_path, text):
    make(tmp_path)
    kit = tmp_path / "kits" / "server"
    (kit / "registered.toml").write_text(text)
    for function in (serve.register, serve.sites):
        with pytest.raises(ConfigError, match=r"registered.toml"):
            list(function(kit))


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "127.0.0.1:abc", "127.0.0.1", "127.0.0.1:0"])
def test_an_invalid_port_is_refused(address):
    with pytest.raises(ConfigError, match="HOST:PORT"):
        serve.check_free(address)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "federation.toml").write_text(HEAD + SITES)
    with pytest.raises(ConfigError, match=r"--out .*federation\.toml.*Not a directory"):
        list(provision(read_federation(tmp_path / "federation.toml"), tmp_path / "federation.toml"))
