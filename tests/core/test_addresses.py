"""HOST:PORT addresses."""

import subprocess
import sys

import pytest

from core.addresses import join_address, split_address
from core.errors import ConfigError
from tests.paths import ROOT

GOOD = [
    ("127.0.0.1:8000", "127.0.0.1", 8000),
    ("fl.example.org:1", "fl.example.org", 1),
    ("localhost:65535", "localhost", 65535),
    ("[::1]:9092", "::1", 9092),
    ("[2001:db8::7]:443", "2001:db8::7", 443),
    ("[fe80::1%eth0]:443", "fe80::1%eth0", 443),
]


@pytest.mark.parametrize(("text", "host", "port"), GOOD)
def test_an_address_is_split_and_joined(text, host, port):
    assert split_address(text) == (host, port)
    assert join_address(host, port) == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "8000",
            ":8000",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "host:-1",
            "host:+1",
            "host: 1",
            "host:1_0",
        ),
        *(
            "host:http",
            "host:\u00b2",
            "host:\u0661",
            "::1:9092",
            "::1",
            "[::1]",
            "[::1]9092",
            "[::1:9092",
            "::1]:9092",
        ),
        *("[]:1", "[localhost]:1", "[127.0.0.1]:1", "http://host:80/", "http://host:80"),
    ],
)
def test_another_form_is_refused_with_its_key(text):
    with pytest.raises(
        ConfigError, match=r'^kit\.toml: control must be "HOST:PORT", .* 65535 .*, got '
    ) as refused:
        split_address(text, "kit.toml: control")
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize(
    "module", ["core.addresses", "core.atomic", "cli.machine.settings", "core.tables", "core.files"]
)
def test_a_module_that_every_message_or_a_supervisor_loads_is_light(module):
    code = f"import sys; import {module}; print(*(name for name in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.split())
    assert module in loaded
    assert not loaded & {"torch", "flwr", "core.config", "numpy"}
