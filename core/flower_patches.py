"""Patches to Flower's internals: shorter polling, unpack the app once, fail messages whose ClientApp died.

Everything that depends on the insides of flwr is in this file. A patch is made only where the version is of SERIES and
the source is the one that it replaces; otherwise nothing is changed, `apply` says so in one line, and everything works,
more slowly. No result depends on a patch. No module of Accord is imported: `accord node` runs this file without its
package (cli/site/node.py).
"""

import hashlib
import inspect
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

log = logging.getLogger("core.flower_patches")  # not __name__: see cli/site/node.py

SERIES = "1.39"  # of flwr; docs/decisions/0011-flower-1.39.md lists what later ones change
REPLY_S = 0.02  # between two looks for a reply, which are cheap: it is in this process's memory
MIN_SLEEP_S = 0.02
IDLE_SHARE = 0.02  # sleep this share of the time since the last message before asking the SuperLink again
# What the patches replace, as it is in SERIES
SUPERNODE_SLEEPS = ["time.sleep(3)", "time.sleep(0.5)", "time.sleep(0.5)"]  # of the loop
SUPEREXEC_SLEEPS = ["time.sleep(task_poll_interval)"]  # of the SuperExec
FETCH_RETRIES = {"initial_backoff": 1, "backoff_cap": 10, "max_tries_per_object": 500}  # of tensors
SHORT_RETRIES = {
    "initial_backoff": 0.02,
    "backoff_cap": 0.1,
    "max_tries_per_object": None,  # no limit: Flower's max_time still ends the retries
}
UNPACKING = [  # lines of the installer on which unpack_app_once relies
    'f"{publisher}.{project_name}.{version}.{fab_hash[:FAB_HASH_TRUNCATION]}"',
    "if install_path.exists():",
]
EXPIRY = [  # lines of the SuperNode's state on which fail_messages_of_dead_apps relies
    "def _on_task_tokens_expired(self, tasks",
    "and entry.is_retrieved",
    "self.lock_msg_store = RLock()",
]


@dataclass(frozen=True)
class Patch:
    """A change of flwr's internals. Calling it makes the change and returns True, or returns False without a change.

    change(): makes it; returns False, without a change, if the source is not that of SERIES.
    without: what happens without it, for the user.
    """

    change: Callable[[], bool]
    without: str

    def __call__(self) -> bool:
        if flower_version().split(".")[:2] != SERIES.split("."):
            return False
        try:
            return self.change()
        except (ImportError, AttributeError, OSError):  # what it replaces is elsewhere, or has no source
            return False


def patch(without: str) -> Callable[[Callable[[], bool]], Patch]:
    """Make a Patch of the decorated function."""
    return lambda change: Patch(change, without)


def apply(patches: Sequence[Patch]) -> None:
    """Make the patches; one warning names what happens without those that this version of flwr does not admit."""
    missing = [each.without for each in patches if not each()]
    if missing:
        log.warning(
            "accord: flwr %s differs from the %s whose internals Accord patches, so that %s",
            flower_version(),
            SERIES,
            "; ".join(missing),
        )


def flower_version() -> str:
    return metadata.version("flwr")


class Sleep:
    """Replaces time.sleep: short sleeps during and soon after work, never longer than requested."""

    def __init__(self) -> None:
        self.last_work = time.monotonic()

    def __call__(self, seconds: float) -> None:
        now = time.monotonic()
        if seconds < 1:
            self.last_work = now
            time.sleep(REPLY_S)
        else:
            time.sleep(min(seconds, max(MIN_SLEEP_S, IDLE_SHARE * (now - self.last_work))))


@patch("a message waits up to 3 s until the SuperNode asks for it")
def shorten_supernode_polling() -> bool:
    """Make the SuperNode poll more often."""
    import flwr.supernode.start_client_internal as loop

    if re.findall(r"\btime\.\w+\([\d.]*\)", inspect.getsource(loop)) != SUPERNODE_SLEEPS:
        return False
    loop.time = SimpleNamespace(sleep=Sleep())  # type: ignore[attr-defined]
    return True


@patch("a task waits up to 1 s until the SuperExec asks for it")
def shorten_task_polling() -> bool:
    """Make the SuperExec poll its SuperNode more often."""
    import flwr.supercore.superexec.run_superexec as loop

    if re.findall(r"\btime\.\w+\(\w*\)", inspect.getsource(loop)) != SUPEREXEC_SLEEPS:
        return False
    sleep, handle = Sleep(), loop._handle_launch_result

    def handle_and_note(*launched: Any) -> None:
        sleep.last_work = time.monotonic()
        handle(*launched)

    loop._handle_launch_result = handle_and_note
    loop.time = SimpleNamespace(sleep=sleep)  # type: ignore[attr-defined]
    return True


@patch("fetching tensors is tried again only after 1 s, 2 s, 4 s")
def shorten_fetch_retries() -> bool:
    """Retry fetching a message's tensors sooner."""
    from flwr.supercore.inflatable import inflatable_utils

    functions = [inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree]
    if any(not FETCH_RETRIES.items() <= (function.__kwdefaults__ or {}).items() for function in functions):
        return False
    for function in functions:
        function.__kwdefaults__.update(SHORT_RETRIES)  # type: ignore[union-attr]
    return True


@patch("the app is unpacked for every message")
def unpack_app_once() -> bool:
    """Unpack the app's bundle once, not for every ClientApp process.

    Flower unpacks and checks a bundle each time, and then uses the folder of its name, version and hash if one exists.
    Here that folder is looked for first.
    """
    from flwr.cli import install
    from flwr.common.constant import APP_DIR, FAB_HASH_TRUNCATION
    from flwr.supercore.utils import get_flwr_home
    from flwr.supernode.runtime import run_clientapp

    unchanged = all(part in inspect.getsource(install.validate_and_install) for part in UNPACKING)
    if not unchanged or vars(run_clientapp).get("install_from_fab") is not install.install_from_fab:
        return False

    def unpacked(fab: bytes, **options: Any) -> Path:
        digest = hashlib.sha256(fab).hexdigest()[:FAB_HASH_TRUNCATION]
        folders = list((get_flwr_home() / APP_DIR).glob(f"*.{digest}"))
        return folders[0] if len(folders) == 1 else install.install_from_fab(fab, **options)

    run_clientapp.install_from_fab = unpacked  # type: ignore[attr-defined]
    return True


@patch("a SuperNode may wait for a ClientApp that died until it is restarted")
def fail_messages_of_dead_apps() -> bool:
    """Make the SuperNode fail messages whose ClientApp died.

    A ClientApp that ends between taking its task and fetching the message leaves a message that is never fetched, and
    the SuperNode waits for its reply for ever. Marked as fetched, the message gets Flower's usual error reply.
    """
    from flwr.proto.task_pb2 import Task
    from flwr.supercore.constant import TaskType
    from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

    if any(part not in inspect.getsource(InMemoryNodeState) for part in EXPIRY):
        return False
    on_expired = InMemoryNodeState._on_task_tokens_expired

    def mark_and_expire(self: InMemoryNodeState, tasks: list[Task]) -> None:
        runs = {task.run_id for task in tasks if task.type == TaskType.CLIENT_APP}
        with self.lock_msg_store:
            for entry in self.msg_store.values():
                metadata = entry.message.metadata
                if metadata.run_id in runs and not metadata.reply_to_message_id and not entry.is_retrieved:
                    entry.is_retrieved = True
                    self.record_message_processing_start(metadata.message_id)
        on_expired(self, tasks)

    InMemoryNodeState._on_task_tokens_expired = mark_and_expire
    return True


# by process
SERVERAPP = (shorten_fetch_retries,)  # a reply is announced before its tensors have arrived
SUPERNODE = (shorten_supernode_polling, shorten_fetch_retries, unpack_app_once, fail_messages_of_dead_apps)
SUPEREXEC = (shorten_task_polling,)
CLIENTAPP = (shorten_fetch_retries, unpack_app_once)
