"""The resident site as a process: the same bytes as in process, one base, one message at a time, an orderly end."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import urllib.request
from dataclasses import replace

import grpc
import psutil
import pytest
import torch

from client_app.node import Node
from client_app.relay import FORMAT, METHOD, ask
from client_app.site import Site
from core import __version__, wire
from core.config import parse
from core.errors import SiteError
from core.framing import FACTS, pack, unpack
from core.types import HelloRequest, Order
from tasks.model.adapter import initial_adapter
from tests.cli.site.resident import SMALL, Place
from tests.federation.conftest import free_port, wait_until
from tests.orders import with_fields

pytestmark = pytest.mark.slow
OURS = {"accord": __version__, "format": FORMAT}
LONG = {"train.local-steps": 4000}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with Place(tmp_path_factory.mktemp("s")).going() as place:
        place.ready()
        yield place


@pytest.fixture
def place(tmp_path):
    with Place(tmp_path).going() as place:
        yield place


@pytest.fixture
def here(tmp_path) -> Site:
    return Site(parse(dict(SMALL)), Node(1, 3, state_dir=str(tmp_path / "here")))


def order(site: Site, rnd: int = 1, **fields) -> Order:
    base = site.base()
    common = {"run": "r", "base": base.fingerprint, "round": rnd}
    return with_fields(Order(1, {"global": initial_adapter(base, 42)}), **common, **fields)


def failure(record) -> str:
    kind, reason = json.loads(str(record[FACTS]["json"]))["failure"]
    return f"{kind}: {reason}"


def test_a_resident_site_answers_with_the_same_bytes(served, here):
    """Trained here and there from one order: the trees are the same bytes; the base was loaded once, at the hello."""
    said = wire.decode_facts(served.ask("hello", wire.encode_hello_request(HelloRequest("r")), run=1))
    assert said == {**here.hello(HelloRequest("r")), "loads": 1}
    there = [wire.decode_update(served.ask("train", wire.encode_order(order(here)), run=1)) for _ in range(2)]
    want = here.train(order(here))
    for update in there:
        assert update.loads == 0
        assert all(update.trees["delta"][n].equal(t) for n, t in want.trees["delta"].items())
    scored = wire.decode_update(served.ask("evaluate", wire.encode_order(order(here)), run=1))
    assert scored.metrics == here.evaluate(order(here)).metrics
    assert "run=1 round=1 train ends: " in served.log


def test_two_runs_at_one_site_wait_their_turn_and_do_not_mix(served, here):
    """At the same time, with another seed and another rank: each gets what it would get alone."""
    other = Site(parse({**SMALL, "run.seed": 7, "lora.r": 4}), here.node)
    got = {}

    def run(name: int, site: Site, **keys) -> None:
        for rnd in (1, 2):
            got[name, rnd] = wire.decode_update(
                served.ask("train", wire.encode_order(order(site, rnd)), run=name, **keys)
            )

    asked = [(here, {}), (other, {"run__seed": 7, "lora__r": 4})]
    threads = [threading.Thread(target=run, args=(n, s), kwargs=k) for n, (s, k) in enumerate(asked)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, (site, _) in enumerate(asked):
        for rnd in (1, 2):
            want = site.train(order(site, rnd)).trees["delta"]
            assert all(got[name, rnd].trees["delta"][n].equal(t) for n, t in want.items())
    lines = [line.split(": ")[0].split()[-1] for line in served.log.splitlines() if " train " in line]
    assert lines == ["begins", "ends"] * (len(lines) // 2)


def test_a_failure_of_the_site_is_one_line_on_both_sides(served):
    record = served.ask("hello", wire.encode_hello_request(HelloRequest("r", "0" * 32)))
    assert failure(record).startswith("BaseMismatch: client 1 ")
    assert "BaseMismatch: client 1 " in served.log


def test_an_unexpected_failure_tells_no_text(served, here):
    """The text of an exception can quote a row: neither the answer nor the log has it, both say where it was."""
    bad = wire.encode_order(replace(order(here), adapter="marker-9d2c"))
    assert re.match(
        r"KeyError: unexpected error at site.py:\d+; see the client's log$",
        failure(served.ask("train", bad)),
    )
    assert "KeyError at\n" in served.log
    assert "marker-9d2c" not in served.log


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "FrameError: not a message of Accord"),
        (b"\xff" * 64, "FrameError: not a message of Accord"),
        (
            pack({"accord": __version__, "format": 2}, wire.encode_facts({})),
            "SiteError: the app that the server sent is Accord '.*' with message format 2, this site",
        ),
        (
            pack({**OURS, "accord": "0.0.9"}, wire.encode_facts({})),
            "SiteError: the app that the server sent is Accord '0.0.9' .*; upgrade the older one",
        ),
        (pack({**OURS, "kind": "hello"}, wire.encode_facts({})), "FrameError.*header is incomplete"),
        (
            pack(
                {**OURS, "kind": "rows", "run": "1", "owner": "", "app": "", "keys": {}},
                wire.encode_facts({}),
            ),
            "SiteError: .* hello, train, evaluate, got 'rows'",
        ),
    ],
)
def test_what_is_no_message_is_refused(served, data, message):
    assert re.match(message, failure(unpack(ask(served.address, data, "", 30.0))[1]))


def test_the_socket_is_its_owners_alone(served):
    mode = stat.S_IMODE(os.stat(served.path / "s.sock").st_mode)
    assert oct(mode) == "0o600"


def test_a_second_site_at_the_same_socket_is_refused_and_the_first_goes_on(served):
    second = served.start()
    assert second.wait(60) == 2
    assert "another `accord site` serves it" in served.log
    assert "failure" not in wire.decode_facts(
        served.ask("hello", wire.encode_hello_request(HelloRequest("r")))
    )


def test_a_message_above_the_limit_is_refused_unread(place):
    place.ready("max-message-mb=1")
    big = {"global": {"w": torch.zeros(1 << 18)}}
    record = place.ask("train", wire.encode_order(Order(1, big)))
    assert "RESOURCE_EXHAUSTED" in failure(record)
    assert " begins" not in place.log


def test_on_loopback_only_who_holds_the_token_is_answered(place):
    secret = place.path / "token"
    secret.write_text("0123456789abcdef\n")
    secret.chmod(0o600)
    address = f"127.0.0.1:{free_port()}"
    place.ready(f"address={address}", "token-file=token")
    with pytest.raises(SiteError, match="UNAUTHENTICATED"):
        ask(address, b"", "another", 30.0)
    assert failure(unpack(ask(address, b"", "0123456789abcdef", 30.0))[1]).startswith("FrameError")


def test_sigterm_in_a_training_is_answered_and_ends_well(place, here):
    """The step is abandoned; the server is told; a message in line is told as well; the socket is gone."""
    process = place.ready()
    said = []
    flat = {k.replace(".", "__"): v for k, v in LONG.items()}
    threads = [
        threading.Thread(
            target=lambda: said.append(failure(place.ask("train", wire.encode_order(order(here)), **flat)))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: "train begins" in place.log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    for thread in threads:
        thread.join()
    assert said == ["SiteError: the site process was stopped before it answered"] * 2
    assert not (place.path / "s.sock").exists()


def test_a_base_nobody_asked_for_is_let_go_of(place):
    place.ready("idle-s=1.0")
    place.ask("hello", wire.encode_hello_request(HelloRequest("r")))
    wait_until(lambda: "released after 1 s without a message" in place.log)
    said = wire.decode_facts(place.ask("hello", wire.encode_hello_request(HelloRequest("r"))))
    assert said["loads"] == 1, "the second hello loads it again"


def test_memory_does_not_grow_with_runs(place):
    """Another base for each: one is kept."""
    process = psutil.Process(place.ready().pid)
    sizes = []
    for run in range(6):
        place.ask("hello", wire.encode_hello_request(HelloRequest("r")), run=run, lora__r=64 + run)
        sizes.append(process.memory_info().rss / 1e6)
    assert sizes[-1] - sizes[1] < 40, sizes


def test_nothing_of_ours_but_the_site_answers(served):

    with (
        grpc.insecure_channel(served.address) as channel,
        pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"),
    ):
        channel.unary_unary(METHOD.replace("Answer", "Rows"))(b"", timeout=30)


def test_the_command_says_it_too(tmp_path):
    (tmp_path / "site.toml").write_text('address = "unix:s.sock"\n')
    command = [sys.executable, "accord", "site", str(tmp_path / "site.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip().endswith("'partition-id' is missing")) == (2, True)


def test_its_log_can_be_json_and_prometheus_may_ask(place):
    port = free_port()
    place.ready("log-format=json", f"metrics-port={port}")
    place.ask("hello", wire.encode_hello_request(HelloRequest("r")))
    told = [json.loads(line) for line in place.log.splitlines()]
    assert {"time", "level", "logger", "message"} == set(told[-1])
    assert " hello ends: " in told[-1]["message"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        metrics = answer.read().decode()
    assert 'accord_site_messages_total{kind="hello",outcome="answered"} 1.0' in metrics
    assert "accord_site_base_loads 1.0" in metrics
