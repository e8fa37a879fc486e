"""A wrong federation file is refused in one line."""

import pytest

from core.errors import ConfigError
from tests.cli.provision.kits import HEAD, SITES, make


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
