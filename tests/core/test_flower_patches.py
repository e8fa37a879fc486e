"""Where Flower waits: what is changed of flwr is there to be changed, and another flwr is left alone."""

import subprocess
import sys
import time

import pytest

from core.flower_patches import SLEEPS, Sleep
from tests.federation.conftest import ROOT

CHANGES = "n.shorten_loop(), n.shorten_tasks(), n.shorten_tries(), n.unpack_once(), n.answer_for_the_dead()"


def test_this_flwr_is_the_one_whose_sleeps_are_known():
    """In a process of its own: it changes flwr."""
    code = f"import core.flower_patches as n; print({CHANGES})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-5:] == ["True"] * 5


def test_another_loop_is_left_alone():
    code = (
        "import core.flower_patches as n, flwr.supernode.start_client_internal as loop\n"
        f"n.SLEEPS = {SLEEPS[:2]!r}; n.TASKS = []; n.TRIES = {{'initial_backoff': 2}}; n.FOLDER = n.EXPIRED = ['x y']\n"
        f"before = loop.time; print({CHANGES}, loop.time is before)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-6:] == ["False"] * 5 + ["True"]


def test_sleeps_grow_with_the_silence_up_to_what_flower_would_sleep(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    sleep = Sleep()
    sleep(0.5)
    sleep(3)
    sleep.busy -= 50
    sleep(3)
    sleep.busy -= 1000
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

if sys.argv[1] == "changed":
    assert core.flower_patches.answer_for_the_dead()
TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
state = NodeStateFactory(ObjectStoreFactory()).state()
state.set_node_id(1)
for name in ("fetched", "left"):
    message = Message(RecordDict(), dst_node_id=1, message_type="train")
    message.metadata.__dict__["_message_id"] = name
    state.store_message(message)
    if name == "fetched":
        state.get_messages(run_ids=[7], is_reply=False)
state._on_task_tokens_expired([Task(run_id=7, type=TaskType.CLIENT_APP)])
print(sorted(m.metadata.reply_to_message_id for m in state.get_messages(is_reply=True)))
"""


@pytest.mark.parametrize(("how", "answered"), [("known", ["fetched"]), ("changed", ["fetched", "left"])])
def test_a_message_that_a_dead_clientapp_left_is_answered(how, answered):
    """`known` is what flwr 1.39 does: its SuperNode would wait for the other reply for ever."""
    done = subprocess.run([sys.executable, "-c", DEAD, how], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(answered)
