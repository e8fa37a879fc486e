"""The patches apply to the installed flwr, and a different flwr is left unchanged."""

import subprocess
import sys
import time

import pytest

from core import flower_patches
from core.flower_patches import CLIENTAPP, SERVERAPP, SUPEREXEC, SUPERNODE, SUPERNODE_SLEEPS, Sleep
from tests.federation.conftest import ROOT

PATCHES = (
    "shorten_supernode_polling", "shorten_task_polling", "shorten_fetch_retries", "unpack_app_once",
    "fail_messages_of_dead_apps",
)  # fmt: skip
OTHER_TEXT = (
    f"n.SUPERNODE_SLEEPS = {SUPERNODE_SLEEPS[:2]!r}; n.SUPEREXEC_SLEEPS = []\n"
    "n.FETCH_RETRIES = {'initial_backoff': 2}; n.UNPACKING = n.EXPIRY = ['x y']"
)
OTHER_VERSION = "n.flower_version = lambda: '1.40.0'"
MOVED = "sys.modules['flwr.supernode.start_client_internal'] = None"
INTERNALS = """
import core.flower_patches as n, sys
import flwr.supernode.start_client_internal as loop, flwr.supercore.superexec.run_superexec as executor
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState
from flwr.supernode.runtime import run_clientapp
def internals():
    return (loop.time, executor.time, dict(pull_objects.__kwdefaults__), run_clientapp.install_from_fab,
            InMemoryNodeState._on_task_tokens_expired)
before = internals()
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    """In a subprocess, because it patches flwr."""
    return subprocess.run(
        [sys.executable, "-c", INTERNALS + code], cwd=ROOT, capture_output=True, text=True, check=True
    )


def test_every_patch_is_for_a_process_and_applies_to_the_installed_flwr():
    assert {patch for patches in (SERVERAPP, SUPERNODE, SUPEREXEC, CLIENTAPP) for patch in patches} == {
        getattr(flower_patches, name) for name in PATCHES
    }
    result = run(
        f"n.apply([getattr(n, name) for name in {PATCHES}])\nprint(*map(lambda a, b: a != b, before, internals()))"
    )
    assert result.stdout.split()[-5:] == ["True"] * 5
    assert "accord:" not in result.stderr


@pytest.mark.parametrize(("other", "version"), [(OTHER_TEXT, "1.39."), (OTHER_VERSION, "1.40.0")])
def test_another_source_or_version_is_left_unchanged_with_one_line(other, version):
    result = run(f"{other}\nn.apply([getattr(n, name) for name in {PATCHES}]); print(before == internals())")
    assert result.stdout.split()[-1] == "True"
    (line,) = [line for line in result.stderr.splitlines() if "accord:" in line]
    assert version in line
    assert all(getattr(flower_patches, name).without in line for name in PATCHES)


def test_internals_that_have_moved_are_left_alone():
    result = run(f"{MOVED}\nprint(n.shorten_supernode_polling(), before == internals())")
    assert result.stdout.split()[-2:] == ["False", "True"]


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
