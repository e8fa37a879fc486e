"""A site behind a policy, on the real toy model."""

from dataclasses import replace
from pathlib import Path

from cli.site.policy.guard import GuardedSite
from cli.site.policy.rules import Policy
from client_app.claim import Claim
from client_app.node import Node
from client_app.site import Site
from core.config import parse
from core.tree import Tree
from core.types import HelloRequest, Order
from tasks.model.adapter import initial_adapter
from tests.orders import with_fields

SMALL = {"data.rows-per-client": 24, "data.eval-rows-per-client": 24, "train.local-steps": 3}
CLAIM = Claim("7", "anna", "accord.accord-fl.0.1.0.0123abcd")
STRICT = Policy(
    tasks=("dpo",), strategies=("fedavg",), models=(("toy", ""),), sources=("toy",), max_rounds=12
)


def guarded(
    path: Path, policy: Policy = STRICT, claim: Claim = CLAIM, client: int = 0, **keys: object
) -> GuardedSite:
    flat = {k.replace("__", ".").replace("_", "-"): v for k, v in keys.items()}
    node = Node(client, 3, state_dir=str(path / f"home-{client}"))
    return GuardedSite(Site(parse({**SMALL, **flat}), node), policy, claim)


def order(
    guard: GuardedSite, *, tree: Tree | None = None, rnd: int = 1, recall: int = 0, run: str = "r", **fields
) -> Order:
    base = guard.site.base()
    common = {"run": run, "base": base.fingerprint, "round": rnd, "clients": 3, "cohort": 3}
    trees = {"global": tree or initial_adapter(base, 42)}
    return with_fields(Order(guard.site.node.client, trees, recall=recall), **common, **fields)


def greeting(guard: GuardedSite, run: str = "r") -> HelloRequest:
    return HelloRequest(run, guard.site.base().fingerprint)


def with_policy(guard: GuardedSite, **changes: object) -> GuardedSite:
    return replace(guard, policy=replace(guard.policy, **changes))
