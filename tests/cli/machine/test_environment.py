"""The environment of child processes: which variables of a shell reach Flower, Ray and the clients."""

import os
import resource
import subprocess
import sys
import tempfile
import urllib.request

import pytest

from cli.machine.environment import (
    LOOPBACK,
    RAY_BYTES,
    SOCKET_BYTES,
    bypass,
    cleaned,
    private_ray,
    proxy_for,
    raise_file_limit,
    short_folder,
)
from tests.paths import ROOT

CASES = ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "value", ["http://10.0.0.1:3128", "10.0.0.1:3128", "socks5://10.0.0.1", "xyz://q", "http://[", "%"]
)
def test_httpx_reaches_the_loopback_without_a_proxy(name, value, monkeypatch):
    """httpx, the client of Flower's processes, can be set up and connects to the loopback directly."""
    import httpx

    for variable in [*CASES, "no_proxy", "NO_PROXY"]:
        monkeypatch.delenv(variable, raising=False)
    for variable, text in cleaned({name: value})[0].items():
        monkeypatch.setenv(variable, text)
    with httpx.Client() as client:
        for host in ("127.0.0.1", "localhost", "[::1]"):
            transport = client._transport_for_url(httpx.URL(f"http://{host}:9091/health"))
            assert transport is client._transport
        outside = client._transport_for_url(httpx.URL("https://huggingface.co"))
    is_used = name in cleaned({name: value})[0] and name.lower() != "http_proxy"
    assert (outside is not client._transport) == is_used, "the user's own proxy stays for the Hub"
    assert urllib.request.proxy_bypass("127.0.0.1:9091")


@pytest.mark.parametrize("name", ["ALL_PROXY", "https_proxy"])
def test_an_unusable_proxy_is_left_out_and_named_without_its_value(name):
    env, notes = cleaned({name: "xyz://user:secret@host"})
    assert name not in env
    assert [note.split()[0] for note in notes] == [name]
    assert "secret" not in notes[0]


@pytest.mark.parametrize("user", ["", "intra.example, 10.0.0.0/8", "localhost"])
def test_the_users_own_exceptions_stay(user):
    for name in ("no_proxy", "NO_PROXY"):
        env = bypass({name: user})
        assert env["no_proxy"] == env["NO_PROXY"] == env["no_grpc_proxy"]
        hosts = env["no_proxy"].split(",")
        assert (
            hosts[: len(hosts) - 3]
            == [h.strip() for h in user.split(",") if h.strip() not in ("", *LOOPBACK)]
            or user == "localhost"
        )
        assert set(LOOPBACK) <= set(hosts)


def test_a_star_in_no_proxy_stays_alone():
    """httpx reads "*" only if it is alone, and gRPC does not support it."""
    env = bypass({"no_proxy": "*"})
    assert env["no_proxy"] == "*"
    assert set(LOOPBACK) <= set(env["no_grpc_proxy"].split(","))


def test_grpc_uses_the_proxy_of_its_first_variable_except_for_the_loopback():
    env = {"https_proxy": "http://p:1", "http_proxy": "http://q:1", "no_proxy": "example.org"}
    assert proxy_for(env, "server.example.com") == "https_proxy"
    assert proxy_for({"HTTPS_PROXY": "http://p:1"}, "server.example.com") == ""
    for direct in ("127.0.0.1", "localhost", "server.example.org"):
        assert proxy_for(env, direct) == ""


def test_a_simulations_ray_joins_no_cluster():
    env, notes = private_ray(
        {"RAY_ADDRESS": "a:1", "RAY_TMPDIR": "/x", "RAY_memory_usage_threshold": "0.9", "A": "b"}
    )
    assert env == {"RAY_memory_usage_threshold": "0.9", "A": "b"}
    assert "RAY_ADDRESS, RAY_TMPDIR" in notes[0]
    assert private_ray({"A": "b"}) == ({"A": "b"}, [])


@pytest.mark.parametrize("module", ["core.py", "tasks.py", "client_app/__init__.py"])
def test_a_folder_that_hides_accords_modules_is_removed_from_pythonpath(tmp_path, module):
    bad, good = tmp_path / "bad", tmp_path / "good ü"
    (bad / module).parent.mkdir(parents=True)
    (bad / module).touch()
    good.mkdir()
    env, notes = cleaned({"PYTHONPATH": os.pathsep.join([str(bad), str(good), str(ROOT)])})
    assert env["PYTHONPATH"] == f"{good}{os.pathsep}{ROOT}"
    assert str(bad) in notes[0]


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii"}]
)
def test_a_child_reads_and_prints_utf8_in_every_locale(locale, tmp_path):
    file = tmp_path / "Zeilen ü.txt"
    file.write_text("→ ü", encoding="utf-8")
    program = "import sys; print(open(sys.argv[1]).read())"
    env = cleaned({"PATH": os.environ["PATH"], **locale})[0]
    child = subprocess.run([sys.executable, "-c", program, str(file)], env=env, capture_output=True)
    assert child.stdout.decode() == "→ ü\n", child.stderr


def test_a_short_folder_is_made_elsewhere_if_tmpdir_is_too_long_or_missing(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 110)
    long.mkdir()
    for place in (long, tmp_path / "missing"):
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        folder = short_folder("accord-", room=1.0, taken=RAY_BYTES)
        assert folder.is_dir()
        assert len(os.fsencode(folder)) + RAY_BYTES <= SOCKET_BYTES
        assert folder.stat().st_mode & 0o077 == 0
        folder.rmdir()


def test_an_error_gives_the_reason_for_every_place_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(OSError, match=r"missing: No such file.*/tmp: less than .*set TMPDIR"):
        short_folder("accord-", room=1e18)


def test_the_limit_of_open_files_is_raised_to_the_hard_limit():
    program = (
        "import resource; from cli.machine.environment import raise_file_limit as raise_limit; "
        "raise_limit(); print(resource.getrlimit(7))"
    )

    def low() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, 1000))

    child = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, preexec_fn=low, capture_output=True, text=True
    )
    assert child.stdout == "(1000, 1000)\n", child.stderr
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    raise_file_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= before[0]
