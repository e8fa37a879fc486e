"""`accord doctor` on a server's kit."""

import socket
import stat

import pytest

from cli.provision.server_checks import checks
from core.errors import ConfigError
from tests.cli.provision.kits import HEAD, make
from tests.federation.conftest import free_port


@pytest.fixture
def kit(tmp_path):
    """The server's kit of a federation on free ports, not started."""
    fleet, control = free_port(), free_port()
    text = (
        f'{HEAD}fleet-port = {fleet}\nlisten = "127.0.0.1"\ncontrol = "127.0.0.1:{control}"\n[sites.north]\n'
    )
    make(tmp_path, text)
    return tmp_path / "kits" / "server"


def results(kit) -> dict[str, tuple[str, str]]:
    return {check.subject: (check.verdict, check.message) for check in checks(kit)}


def test_a_valid_kit_can_be_started(kit):
    messages = results(kit)
    assert not [subject for subject, (verdict, _) in messages.items() if verdict == "no"]
    assert messages["certificate"][0] == "ok"
    assert "fl.example.org" in messages["certificate"][1]
    assert messages["SuperLink"] == ("note", messages["SuperLink"][1])
    assert "accord start" in messages["SuperLink"][1]


def test_a_port_in_use_is_named(kit):
    port = int(results(kit)["port"][1].split()[0].rpartition(":")[2])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        verdicts = {check.message: check.verdict for check in checks(kit) if check.subject == "port"}
    assert sorted(verdicts.values()) == ["no", "ok"]
    assert any(str(port) in message and verdict == "no" for message, verdict in verdicts.items())


def test_a_key_that_others_can_read_is_reported(kit):
    key = kit / "server.key"
    key.chmod(stat.S_IRUSR | stat.S_IROTH)
    verdict, message = results(kit)["certificate"]
    assert verdict == "no"
    assert "chmod 600" in message


def test_a_folder_that_is_not_a_kit_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=rf"{tmp_path} .*`accord provision`.*kit\.toml"):
        results(tmp_path)
