"""The ledger: what a site has answered so far, on its own disk. A policy counts runs and rounds by it."""

import hashlib
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path

from cli.site.policy.rules import Policy
from core import atomic, store
from core.errors import PolicyRefused
from core.sections import Config, may_change
from core.tree import flat
from core.types import Json, Order, Update

FORMAT = 2  # of the lines; a line without a number is of format 1, whose runs cannot go on


@dataclass(frozen=True)
class Ledger:
    """One line per run and per answer sent, in `folder`; lines are never removed.

    An order that is repeated after a crash or a lost answer is answered again, and identical answers count once. An
    answer that differs in any bit counts again.
    """

    folder: Path

    def enter(self, policy: Policy, run: str, owner: str, config: Config) -> None:
        """Enter a run, unless it is entered already.

        Raises PolicyRefused beyond max-runs, and if the run's configuration or owner has changed since it began.
        """
        entries = {line["run"]: line for line in self._lines() if "pin" in line}
        pins = {name: line["pin"] for name, line in entries.items()}
        pin = digest([owner, [[k, v] for k, v in config.flat if not may_change(k)]])
        if run in pins and entries[run].get("format", 1) != FORMAT:
            raise PolicyRefused(
                f"run {run!r} began at this site with an earlier version of Accord; start a new run"
            )
        if run in pins and pins[run] != pin:
            raise PolicyRefused(f"run {run!r} began at this site with another configuration or owner")
        if run not in pins:
            if len(pins) >= policy.max_runs:
                raise PolicyRefused(
                    f"run {run!r} would be number {len(pins) + 1}; this site allows {policy.max_runs}"
                )
            self._append({"run": run, "pin": pin, "format": FORMAT})

    def check(self, policy: Policy, run: str, kind: str, order: Order) -> None:
        """Raise PolicyRefused, before the work, if the order is beyond the budget and was not answered before."""
        answered = [line["order"] for line in self._lines() if "order" in line and line["run"] == run]
        if key_of(order) not in answered:
            self._check_budget(policy, run, kind)

    def spend(self, policy: Policy, run: str, kind: str, order: Order, update: Update) -> None:
        """Record an answer before it leaves. Raises PolicyRefused beyond the budget."""
        answer = content_of(update)
        if answer in {line.get("answer") for line in self._lines() if line["run"] == run}:
            return
        self._check_budget(policy, run, kind)
        self._append({"run": run, "kind": kind, "order": key_of(order), "answer": answer, "format": FORMAT})

    def _check_budget(self, policy: Policy, run: str, kind: str) -> None:
        """Raise PolicyRefused if no answer of this kind is left, in this run or in all runs."""
        lines = [line for line in self._lines() if line.get("kind") == kind]
        # one more evaluation than trainings: round 0 is scored too
        extra = 0 if kind == "train" else 1
        count = sum(line["run"] == run for line in lines)
        if count >= policy.max_rounds + extra:
            raise PolicyRefused(f"run {run!r} has had all {count} answers to {kind} that this site allows")
        if len(lines) >= policy.max_total_rounds + extra * policy.max_runs:
            raise PolicyRefused(
                f"this site has given all {len(lines)} answers to {kind} that it allows over all runs"
            )

    def secret(self) -> bytes:
        """Return the site's 32 secret bytes, created at first use."""
        path = self.folder / "secret"
        if not path.exists():
            with store.writing(path):
                self.folder.mkdir(parents=True, exist_ok=True)
                atomic.write(path, os.urandom(32), 0o600)
        if len(secret := path.read_bytes()) != 32:
            raise PolicyRefused("this site's secret is damaged; see its log")
        return secret

    def _lines(self) -> list[Json]:
        lines = store.lines(self.folder / "ledger.jsonl")
        if numbers := {line.get("format", 1) for line in lines} - {1, FORMAT}:
            raise PolicyRefused(
                f"this site's ledger has lines of format {min(map(str, numbers))}, and this version of Accord reads "
                f"formats 1 and {FORMAT}; update Accord at this site"
            )
        return lines

    def _append(self, line: Json) -> None:
        with store.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        store.append(self.folder / "ledger.jsonl", json.dumps(line, sort_keys=True) + "\n")


def key_of(order: Order) -> str:
    """Return a digest that identifies an order by its content."""
    facts = {f.name: getattr(order, f.name) for f in fields(order) if f.name not in ("trees", "options")}
    facts["options"] = sorted(order.options.items())
    trees = [[name, content(tree)] for name, tree in sorted(order.trees.items())]
    return digest([facts, trees])


def content_of(update: Update) -> str:
    """Return a digest of what a server learns from an answer, except for how long it took."""
    metrics = sorted((n, v) for n, v in update.metrics.items() if not n.startswith("seconds/"))
    trees = [[name, content(tree)] for name, tree in sorted(update.trees.items())]
    return digest([update.adapter, update.examples, update.tokens, metrics, trees])


def content(tree: Json) -> str:  # a Tree
    """Return a digest of a tree's names, shapes and values."""
    layout = digest([[name, list(t.shape)] for name, t in tree.items()])
    return hashlib.sha256(layout.encode() + flat(tree).contiguous().numpy().tobytes()).hexdigest()


def digest(value: Json) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
