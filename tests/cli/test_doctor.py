"""What `accord doctor` finds in a server's kit, started or not."""

import socket
import stat

import pytest

from cli.provision.server_checks import checks
from core.errors import ConfigError
from tests.cli.test_provision import HEAD, make
from tests.federation.conftest import free_port


@pytest.fixture
def kit(tmp_path):
    """Of a federation that nobody has started, on free ports."""
    fleet, control = free_port(), free_port()
    text = (
        f'{HEAD}fleet-port = {fleet}\nlisten = "127.0.0.1"\ncontrol = "127.0.0.1:{control}"\n[sites.north]\n'
    )
    make(tmp_path, text)
    return tmp_path / "kits" / "server"


def found(kit) -> dict[str, tuple[str, str]]:
    return {check.what: (check.verdict, check.said) for check in checks(kit)}


def test_a_kit_in_order_can_be_started(kit):
    told = found(kit)
    assert not [what for what, (verdict, _) in told.items() if verdict == "no"]
    assert told["certificate"][0] == "ok"
    assert "fl.example.org" in told["certificate"][1]
    assert told["SuperLink"] == ("note", told["SuperLink"][1])
    assert "accord start" in told["SuperLink"][1]


def test_a_port_that_is_taken_is_named(kit):
    port = int(found(kit)["port"][1].split()[0].rpartition(":")[2])
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        verdicts = {check.said: check.verdict for check in checks(kit) if check.what == "port"}
    assert sorted(verdicts.values()) == ["no", "ok"]
    assert any(str(port) in said and verdict == "no" for said, verdict in verdicts.items())


def test_a_key_that_others_can_read_is_wrong(kit):
    key = kit / "server.key"
    key.chmod(stat.S_IRUSR | stat.S_IROTH)
    assert found(kit)["certificate"][0] == "no"
    assert "chmod 600" in found(kit)["certificate"][1]


def test_a_folder_that_is_no_kit_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no kit of `accord provision`"):
        found(tmp_path)
