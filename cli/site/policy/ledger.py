"""What a site has answered so far, on its own disk: runs and rounds are counted here and by nobody else."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from cli.site.policy.rules import Policy
from core import store
from core.errors import PolicyRefused
from core.sections import Config
from core.tree import flat
from core.types import Json, Order, Update

# Keys that no answer of a client depends on, or that a resumed run may change.
APART = (
    "run.dir",
    "run.resume",
    "run.log-format",
    "run.num-server-rounds",
    "fault.",
    "rlft.",
    "eval.benchmarks",
    "eval.prompts",
)


@dataclass(frozen=True)
class Ledger:
    """One line for each run and for each answer that has left, under `folder`; its lines are never removed.

    An order that comes again, after a crash or a lost answer, is answered again: the same bytes count once. An answer
    that differs in a bit, whatever it differs by, is one more of the budget.
    """

    folder: Path

    def enter(self, policy: Policy, run: str, owner: str, config: Config) -> None:
        """Open the account of a run, or find it. Raises PolicyRefused for one run too many, and for a run that comes
        with another configuration or owner than it began with."""
        pins = {line["run"]: line["pin"] for line in self._lines() if "pin" in line}
        pin = digest([owner, [[k, v] for k, v in config.flat if not k.startswith(APART)]])
        if run in pins and pins[run] != pin:
            raise PolicyRefused(f"run {run!r} began here with another configuration or another owner")
        if run not in pins:
            if len(pins) >= policy.max_runs:
                raise PolicyRefused(
                    f"run {run!r} would be number {len(pins) + 1}; this site allows {policy.max_runs}"
                )
            self._append({"run": run, "pin": pin})

    def check(self, policy: Policy, run: str, kind: str, order: Order) -> None:
        """Before the work is done. Raises PolicyRefused for an order beyond the budget that has not been answered."""
        known = [line["order"] for line in self._lines() if "order" in line and line["run"] == run]
        if key_of(order) not in known:
            self._room(policy, run, kind)

    def spend(self, policy: Policy, run: str, kind: str, order: Order, update: Update) -> None:
        """Write an answer down before it leaves; PolicyRefused beyond the budget."""
        answer = content_of(update)
        if answer in {line.get("answer") for line in self._lines() if line["run"] == run}:
            return
        self._room(policy, run, kind)
        self._append({"run": run, "kind": kind, "order": key_of(order), "answer": answer})

    def _room(self, policy: Policy, run: str, kind: str) -> None:
        """Every round is scored, and the start as well."""
        lines = [line for line in self._lines() if line.get("kind") == kind]
        more = 0 if kind == "train" else 1
        here = sum(line["run"] == run for line in lines)
        if here >= policy.max_rounds + more:
            raise PolicyRefused(f"run {run!r} has had its {here} answers to {kind} that this site allows")
        if len(lines) >= policy.max_total_rounds + more * policy.max_runs:
            raise PolicyRefused(
                f"this site has given the {len(lines)} answers to {kind} that it gives in all"
            )

    def secret(self) -> bytes:
        """32 bytes that nobody else has, made when they are first needed."""
        path = self.folder / "secret"
        if not path.exists():
            with store.writing(path):
                self.folder.mkdir(parents=True, exist_ok=True)
                part = self.folder / f".secret.{os.getpid()}"
                part.unlink(missing_ok=True)
                with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(os.urandom(32))
                    file.flush()
                    os.fsync(file.fileno())
                part.rename(path)
        if len(found := path.read_bytes()) != 32:
            raise PolicyRefused("this site's secret is damaged; its log says where")
        return found

    def _lines(self) -> list[Json]:
        return store.lines(self.folder / "ledger.jsonl")

    def _append(self, line: Json) -> None:
        with store.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        store.append(self.folder / "ledger.jsonl", json.dumps(line, sort_keys=True) + "\n")


def key_of(order: Order) -> str:
    """The same for the same order, and for no other."""
    trees = [[name, content(tree)] for name, tree in sorted(order.trees.items())]
    return digest([order.client, order.adapter, order.recall, sorted(order.knobs.items()), trees])


def content_of(update: Update) -> str:
    """What a server learns from an answer, without how long it took."""
    metrics = sorted((n, v) for n, v in update.metrics.items() if not n.startswith("seconds/"))
    trees = [[name, content(tree)] for name, tree in sorted(update.trees.items())]
    return digest([update.adapter, update.examples, update.tokens, metrics, trees])


def content(tree: Json) -> str:  # a Tree
    layout = digest([[name, list(t.shape)] for name, t in tree.items()])
    return hashlib.sha256(layout.encode() + flat(tree).contiguous().numpy().tobytes()).hexdigest()


def digest(value: Json) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
