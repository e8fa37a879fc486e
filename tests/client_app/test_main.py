"""The ClientApp's face: who is asked, and what a run that asks for resident sites gets from a client without one."""

import pytest
from flwr.app import Context, Message, RecordDict

from client_app.main import app
from core import wire
from core.types import HelloRequest
from tests.loopback import Loopback

WHO = {"partition-id": 0, "num-partitions": 2}


def hello(node: dict, **keys) -> Message:
    config = {k.replace("__", ".").replace("_", "-"): v for k, v in keys.items()}
    message = Message(
        wire.encode_hello_request(HelloRequest("r")), dst_node_id=10, message_type="query.hello"
    )
    grid = Loopback([10], lambda _, m: app(m, Context(1, 10, node, RecordDict(), config)))
    (reply,) = grid.send_and_receive([message])
    return reply


def test_a_run_that_asks_for_resident_sites_refuses_a_client_without_one():
    failure = wire.failure_of(hello(WHO, site__mode="resident"))
    assert failure
    assert failure.kind == "ConfigError"
    assert failure.reason.startswith("site.mode = 'resident', but this client's --node-config has no ")


def test_a_node_that_names_a_site_never_opens_its_own_rows(tmp_path):
    """Whatever the run asks for: the node's own configuration wins."""
    node = {**WHO, "site": f"unix:{tmp_path}/none.sock"}
    failure = wire.failure_of(hello(node, site__mode="embedded", site__wait_s=0.2))
    assert failure
    assert failure.reason.startswith("no site answered at unix:")


@pytest.mark.parametrize("mode", [{}, {"site__mode": "embedded"}])
def test_else_the_site_is_in_this_process(mode, tmp_path):
    said = wire.decode_facts(hello({**WHO, "state-dir": str(tmp_path)}, **mode).content)
    assert (said["client"], said["clients"]) == (0, 2)
