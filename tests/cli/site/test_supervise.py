"""A site's SuperNode: the settings of its kit, its port, and why it ended."""

import socket
from pathlib import Path

import pytest

from cli.site.site_file import SiteFile
from cli.site.supervise import NodeKit, Supervisor
from core.errors import ConfigError
from tests.cli.provision.kits import HEAD, make


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


def test_a_port_that_another_supernode_uses_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        make(tmp_path, HEAD + f"[sites.north]\nport = {port}\n")
        with pytest.raises(
            ConfigError, match=rf"cannot listen on 127.0.0.1:{port}.*`port` in \[sites.north\]"
        ):
            Supervisor(NodeKit.read(tmp_path / "kits" / "sites" / "north")).run()


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
