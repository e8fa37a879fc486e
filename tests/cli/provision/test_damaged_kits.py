"""A damaged file of a kit is refused by name, and no identity is lost."""

import pytest

from cli.provision import serve
from cli.site.supervise import NodeKit
from core.errors import ConfigError
from tests.cli.provision.kits import HEAD, files, make

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
