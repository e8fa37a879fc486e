"""The patches apply to the installed flwr, and a different flwr is left unchanged."""

import subprocess
import sys
import time

import pytest

from core.flower_patches import SUPERNODE_SLEEPS, Sleep
from tests.federation.conftest import ROOT

PATCHES = (
    "n.shorten_supernode_polling(), n.shorten_task_polling(), n.shorten_fetch_retries(), n.unpack_app_once(), "
    "n.fail_messages_of_dead_apps()"
)


def test_every_patch_applies_to_the_installed_flwr():
    """In a subprocess, because it patches flwr."""
    code = f"import core.flower_patches as n; print({PATCHES})"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.split()[-5:] == ["True"] * 5


def test_a_different_flwr_is_left_unchanged():
    code = (
        "import core.flower_patches as n, flwr.supernode.start_client_internal as loop\n"
        f"n.SUPERNODE_SLEEPS = {SUPERNODE_SLEEPS[:2]!r}; n.SUPEREXEC_SLEEPS = []\n"
        "n.FETCH_RETRIES = {'initial_backoff': 2}; n.UNPACKING = n.EXPIRY = ['x y']\n"
        f"before = loop.time; print({PATCHES}, loop.time is before)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.split()[-6:] == ["False"] * 5 + ["True"]


def test_sleeps_grow_with_idle_time_up_to_what_flower_would_sleep(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    sleep = Sleep()
    sleep(0.5)
    sleep(3)
    sleep.last_work -= 50
    sleep(3)
    sleep.last_work -= 1000
    sleep(3)
    assert slept == pytest.approx([0.02, 0.02, 1.0, 3.0], abs=0.01)


DEAD = """
import sys
from flwr.app import Message, RecordDict
from flwr.proto.task_pb2 import Task
from flwr.supercore.constant import TaskType
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.nodestate.nodestate_factory import NodeStateFactory
import core.flower_patches

if sys.argv[1] == "patched":
    assert core.flower_patches.fail_messages_of_dead_apps()
TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
state = NodeStateFactory(ObjectStoreFactory()).state()
state.set_node_id(1)
for name in ("fetched", "unfetched"):
    message = Message(RecordDict(), dst_node_id=1, message_type="train")
    message.metadata.__dict__["_message_id"] = name
    state.store_message(message)
    if name == "fetched":
        state.get_messages(run_ids=[7], is_reply=False)
state._on_task_tokens_expired([Task(run_id=7, type=TaskType.CLIENT_APP)])
print(sorted(m.metadata.reply_to_message_id for m in state.get_messages(is_reply=True)))
"""


@pytest.mark.parametrize(
    ("flwr", "answered"), [("unpatched", ["fetched"]), ("patched", ["fetched", "unfetched"])]
)
def test_a_message_whose_clientapp_died_gets_an_error_reply(flwr, answered):
    """`unpatched` is flwr 1.39 itself, whose SuperNode would wait for the other reply for ever."""
    result = subprocess.run([sys.executable, "-c", DEAD, flwr], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(answered)
