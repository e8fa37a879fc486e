"""Where Flower 1.39 waits or works twice: shorter sleeps, an app unpacked once, no waiting for the dead.

This touches Flower's inside. Each function looks whether that is as it was in 1.39 and leaves it alone otherwise.
Nothing of ours is imported: `accord node` reads the module without its package (cli/site/node.py).
"""

import hashlib
import inspect
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REPLY_S = 0.02  # a look into this process's own memory
LEAST_S = 0.02
SHARE = 0.02  # of the time since the last message: how long to sleep before asking the SuperLink again
SLEEPS = ["time.sleep(3)", "time.sleep(0.5)", "time.sleep(0.5)"]  # of the loop in 1.39
TASKS = ["time.sleep(task_poll_interval)"]  # of the SuperExec in 1.39
TRIES = {"initial_backoff": 1, "backoff_cap": 10, "max_tries_per_object": 500}  # of fetching tensors in 1.39
SHORT_TRIES = {
    "initial_backoff": 0.02,
    "backoff_cap": 0.1,
    "max_tries_per_object": None,
}  # its max_time ends them
FOLDER = [
    'f"{publisher}.{project_name}.{version}.{fab_hash[:FAB_HASH_TRUNCATION]}"',
    "if install_path.exists():",
]

EXPIRED = [
    "def _on_task_tokens_expired(self, tasks",
    "and entry.is_retrieved",
    "self.lock_msg_store = RLock()",
]


class Sleep:
    """In place of time.sleep: short while there is work, and for a while after; never longer than asked for."""

    def __init__(self) -> None:
        self.busy = time.monotonic()  # when there was last work

    def __call__(self, seconds: float) -> None:
        now = time.monotonic()
        if seconds < 1:
            self.busy = now
            time.sleep(REPLY_S)
        else:
            time.sleep(min(seconds, max(LEAST_S, SHARE * (now - self.busy))))


def shorten_loop() -> bool:
    """Of the SuperNode; whether it is the one that is known here."""
    import flwr.supernode.start_client_internal as loop

    if re.findall(r"\btime\.\w+\([\d.]*\)", inspect.getsource(loop)) != SLEEPS:
        return False
    loop.time = SimpleNamespace(sleep=Sleep())  # type: ignore[attr-defined]
    return True


def shorten_tasks() -> bool:
    """Of the SuperExec, which asks its SuperNode for tasks; whether it is the one that is known here."""
    import flwr.supercore.superexec.run_superexec as loop

    if re.findall(r"\btime\.\w+\(\w*\)", inspect.getsource(loop)) != TASKS:
        return False
    sleep, handle = Sleep(), loop._handle_launch_result

    def handled(*launched: Any) -> None:
        sleep.busy = time.monotonic()
        handle(*launched)

    loop._handle_launch_result = handled
    loop.time = SimpleNamespace(sleep=sleep)  # type: ignore[attr-defined]
    return True


def shorten_tries() -> bool:
    """Of fetching the tensors of a message; whether they are as they are known here."""
    from flwr.supercore.inflatable import inflatable_utils

    tries = [inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree]
    if any(not TRIES.items() <= (function.__kwdefaults__ or {}).items() for function in tries):
        return False
    for function in tries:
        function.__kwdefaults__.update(SHORT_TRIES)  # type: ignore[union-attr]
    return True


def unpack_once() -> bool:
    """The app's bundle in a ClientApp's process; whether it is unpacked as is known here.

    Flower unpacks and checks a bundle, and then uses the folder of its name, version and hash if there is one.
    """
    from flwr.cli import install
    from flwr.common.constant import APP_DIR, FAB_HASH_TRUNCATION
    from flwr.supercore.utils import get_flwr_home
    from flwr.supernode.runtime import run_clientapp

    known = all(part in inspect.getsource(install.validate_and_install) for part in FOLDER)
    if not known or vars(run_clientapp).get("install_from_fab") is not install.install_from_fab:
        return False

    def unpacked(fab: bytes, **asked: Any) -> Path:
        digest = hashlib.sha256(fab).hexdigest()[:FAB_HASH_TRUNCATION]
        folders = list((get_flwr_home() / APP_DIR).glob(f"*.{digest}"))
        return folders[0] if len(folders) == 1 else install.install_from_fab(fab, **asked)

    run_clientapp.install_from_fab = unpacked  # type: ignore[attr-defined]
    return True


def answer_for_the_dead() -> bool:
    """Of the SuperNode: whether its record of messages is the one that is known here.

    A ClientApp that ends between taking its task and fetching the message leaves a message that nobody will fetch and
    a SuperNode that waits for its reply for ever. Taken as fetched, it gets the error reply that others get.
    """
    from flwr.proto.task_pb2 import Task
    from flwr.supercore.constant import TaskType
    from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

    if any(part not in inspect.getsource(InMemoryNodeState) for part in EXPIRED):
        return False
    expired = InMemoryNodeState._on_task_tokens_expired

    def answer(self: InMemoryNodeState, tasks: list[Task]) -> None:
        runs = {task.run_id for task in tasks if task.type == TaskType.CLIENT_APP}
        with self.lock_msg_store:
            for entry in self.msg_store.values():
                said = entry.message.metadata
                if said.run_id in runs and not said.reply_to_message_id and not entry.is_retrieved:
                    entry.is_retrieved = True
                    self.record_message_processing_start(said.message_id)
        expired(self, tasks)

    InMemoryNodeState._on_task_tokens_expired = answer
    return True
