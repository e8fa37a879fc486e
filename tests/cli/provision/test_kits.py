"""Kits: where each secret is, what a second run keeps, what is refused."""

import stat
import subprocess
import tomllib

import pytest

from cli.machine.keys import fingerprint
from cli.provision.certificates import names_of, read_certificate
from cli.provision.federation import read_federation
from cli.provision.kits import make_site_key, provision
from cli.site.supervise import NodeKit, check_files
from core.errors import ConfigError
from tests.cli.provision.kits import HEAD, SITES, files, is_private, make
from tests.federation.conftest import ROOT


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


def test_a_key_that_others_can_read_is_refused(tmp_path):
    make(tmp_path)
    north = tmp_path / "kits" / "sites" / "north"
    check_files(NodeKit.read(north))
    (north / "node.key").chmod(0o640)
    with pytest.raises(ConfigError, match=r"node\.key can be read by others.*chmod 600"):
        check_files(NodeKit.read(north))


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


def test_a_kit_that_has_changed_has_to_be_sent_again(tmp_path):
    make(tmp_path, HEAD + "[sites.north]\n")
    assert make(tmp_path, HEAD + "[sites.north]\n") == []
    (line,) = make(tmp_path, HEAD + "[sites.north]\nport = 9095\n")
    assert line.startswith(f"north  {tmp_path}/kits/sites/north/kit.toml ")
    assert "send it to the site" in line


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "federation.toml").write_text(HEAD + SITES)
    with pytest.raises(ConfigError, match=r"--out .*federation\.toml.*Not a directory"):
        list(provision(read_federation(tmp_path / "federation.toml"), tmp_path / "federation.toml"))
