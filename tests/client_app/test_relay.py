"""The relay: light, patient with a site that is away, and never more patient than it was told to be."""

import json
import subprocess
import sys
import threading
import time

import pytest

from client_app.node import Node
from client_app.relay import relay
from client_app.site import Site
from core import wire
from core.config import parse
from core.framing import FACTS
from core.types import HelloRequest, Order
from tasks.model.adapter import initial_adapter
from tests.cli.site.resident import SMALL, Place
from tests.federation.conftest import ROOT, wait_until

pytestmark = pytest.mark.slow
MANY = {"train__local_steps": 150}  # some seconds


@pytest.fixture
def place(tmp_path):
    with Place(tmp_path).going() as place:
        yield place


def failure(record) -> str:
    return ": ".join(json.loads(str(record[FACTS]["json"]))["failure"])


def train_order(tmp_path) -> tuple[Site, Order]:
    site = Site(parse({**SMALL, "train.local-steps": 150}), Node(1, 3, state_dir=str(tmp_path / "here")))
    base = site.base()
    common = {"run": "r", "base": base.fingerprint, "round": 1}
    return site, Order(1, {"global": initial_adapter(base, 42)}, **common)


def test_the_clientapp_loads_no_model_library_and_no_configuration():
    """What Flower starts for every message is Flower, grpc and a few files of ours."""
    code = "import sys; import client_app.main; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    ours = {"client_app", "core", "tasks", "strategies", "server_app", "evals"}
    assert not loaded & {"torch", "transformers", "peft", "datasets", "scipy", "core.config"}
    assert {name for name in loaded if name.split(".")[0] in ours} == {
        "client_app", "client_app.main", "client_app.relay", "core", "core.addresses", "core.errors", "core.framing",
    }  # fmt: skip


def test_a_site_that_nobody_started_is_waited_for_as_long_as_told(tmp_path):
    started = time.monotonic()
    record = relay(
        "hello",
        wire.encode_hello_request(HelloRequest("r")),
        1,
        {"site.wait-s": 1.5},
        {"site": f"unix:{tmp_path}/s.sock"},
    )
    assert 1.4 < time.monotonic() - started < 6
    assert failure(record).startswith(
        f"SiteError: no site answered at unix:{tmp_path}/s.sock within site.wait-s = 1.5 s"
    )


def test_a_site_that_starts_late_answers(place):
    said = []
    waiting = threading.Thread(
        target=lambda: said.append(place.ask("hello", wire.encode_hello_request(HelloRequest("r"))))
    )
    waiting.start()
    time.sleep(0.5)
    place.ready()
    waiting.join()
    assert wire.decode_facts(said[0])["client"] == 1


def test_a_site_killed_in_a_training_and_started_again_gives_the_same_bytes(place, tmp_path):
    site, order = train_order(tmp_path)
    process, said = place.ready(), []
    waiting = threading.Thread(
        target=lambda: said.append(place.ask("train", wire.encode_order(order), **MANY))
    )
    waiting.start()
    wait_until(lambda: "train begins" in place.log)
    process.kill()
    process.wait()
    assert (place.path / "s.sock").exists(), "what a dead process leaves is in the way of nobody"
    place.ready()
    waiting.join()
    update = wire.decode_update(said[0])
    assert place.log.count("train begins") == 2
    assert all(update.trees["delta"][n].equal(t) for n, t in site.train(order).trees["delta"].items())


def test_a_site_that_dies_of_every_message_is_given_up(place, tmp_path):
    """An order that kills its site must not be sent for ever."""
    _, order = train_order(tmp_path)
    said = []
    waiting = threading.Thread(
        target=lambda: said.append(place.ask("train", wire.encode_order(order), **MANY))
    )
    waiting.start()
    for begun in range(1, 4):
        process = place.ready()
        wait_until(lambda n=begun: place.log.count("train begins") == n)
        process.kill()
        process.wait()
    waiting.join()
    assert failure(said[0]).endswith("disconnected 3 times before it answered; see its log")


@pytest.mark.parametrize("wait", ["soon", -1.0])
def test_a_wait_that_is_no_time_is_refused(tmp_path, wait):
    record = relay(
        "hello",
        wire.encode_hello_request(HelloRequest("r")),
        1,
        {"site.wait-s": wait},
        {"site": f"unix:{tmp_path}/s.sock"},
    )
    assert failure(record) == f"ConfigError: site.wait-s must be a number of seconds, got {wait!r}"


def test_a_token_that_is_not_there_is_refused(tmp_path):
    node = {"site": "127.0.0.1:1", "site-token": str(tmp_path / "token")}
    record = relay("hello", wire.encode_hello_request(HelloRequest("r")), 1, {"site.wait-s": 1.0}, node)
    assert failure(record).startswith("ConfigError: site-token = ")
