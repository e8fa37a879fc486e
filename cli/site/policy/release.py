"""What leaves a site: only the trees that were asked for, clipped and noised, the metrics and counts that it allows."""

import hashlib
import hmac
import logging
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from cli.site.policy.ledger import content
from cli.site.policy.rules import Policy, shown
from core.errors import PolicyRefused
from core.factors import is_private
from core.sections import Config
from core.tree import Tree, norm, scale
from core.types import Json, Order, Update

log = logging.getLogger(__name__)


def release(policy: Policy, config: Config, kind: str, order: Order, update: Update, secret: bytes) -> Update:
    """The update as it may leave. Raises PolicyRefused where it holds what was not asked for, or too few rows."""
    if update.examples < policy.min_rows:
        raise PolicyRefused(
            f"{kind} would be over fewer than the {policy.min_rows} rows that this site asks for"
        )
    _check_trees(config, kind, order, update)
    trees = {name: _bounded(policy, tree) for name, tree in update.trees.items()}
    if policy.updates == "noised":
        trees = {name: _noised(policy, tree, secret, order, name) for name, tree in trees.items()}
    metrics = {n: float(v) for n, v in update.metrics.items() if _may_leave(policy, n, v)}
    counts = {"examples": policy.rounded(update.examples), "tokens": policy.rounded(update.tokens)}
    return replace(update, trees=trees, metrics=metrics, **counts)


def release_facts(policy: Policy, said: Mapping[str, Json]) -> Json:
    """A hello as it may leave: who this is, how many rows it has and which base; of the rest what the policy names.

    The name is the provisioning's: no site that has a policy is simulated.
    """
    if said["examples"] < policy.min_rows:
        raise PolicyRefused(f"this site has fewer than the {policy.min_rows} rows that it asks of itself")
    out = {name: said[name] for name in ("client", "clients", "base", "name") if name in said}
    skipped = sum(said["skipped"].values())  # the reasons name columns of the rows
    census = {name: float(policy.rounded(int(count))) for name, count in said["census"].items()}
    return {
        **out,
        "examples": policy.rounded(said["examples"]),
        "census": census if "census" in policy.facts else {},
        "data": said["data"] if "data" in policy.facts else "",
        "skipped": {"rows": policy.rounded(skipped)} if "skipped" in policy.facts else {},
        "truth": said["truth"] if "truth" in policy.facts else None,
    }


def _check_trees(config: Config, kind: str, order: Order, update: Update) -> None:
    """The names and shapes of what the strategy sends, of the adapter that was trained, and numbers in them."""
    rule = config.build_strategy().client_rule()
    sends = set(rule.sends) if kind == "train" else set()
    if set(update.trees) != sends:
        raise PolicyRefused(f"{kind} would send {sorted(update.trees)}; {sorted(sends)} may leave")
    rnd = int(order.knobs["rnd"])
    shapes = {n: t.shape for n, t in order.trees[order.adapter].items() if rule.leaves(n, rnd)}
    for name, tree in update.trees.items():
        if bad := [n for n, t in tree.items() if is_private(n) or shapes.get(n) != t.shape]:
            raise PolicyRefused(
                f"{name} would send {bad[0]!r}, which is no tensor of the adapter that was asked for"
            )
        if not math.isfinite(norm(tree)):
            raise PolicyRefused(f"{name} would send NaN or Inf")


def _bounded(policy: Policy, tree: Tree) -> Tree:
    size = norm(tree)
    return (
        tree if policy.updates == "clear" or size <= policy.max_norm else scale(tree, policy.max_norm / size)
    )


def _noised(policy: Policy, tree: Tree, secret: bytes, order: Order, name: str) -> Tree:
    """Gaussian noise of noise-multiplier x max-norm on every entry, a function of the site's secret and of what it is
    added to: the same answer has the same noise however often it is asked for, and two answers that differ in a bit
    have nothing in common, so neither their mean nor their difference takes it away."""
    what = "\x1f".join([str(order.knobs["run"]), str(order.knobs["rnd"]), order.adapter, name, content(tree)])
    key = hmac.new(secret, what.encode(), hashlib.sha256).digest()
    draw = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "big")))
    sigma = policy.noise_multiplier * policy.max_norm
    return {n: t + torch.from_numpy(draw.normal(0.0, sigma, tuple(t.shape))).to(t) for n, t in tree.items()}


def _may_leave(policy: Policy, name: str, value: Json) -> bool:
    if type(value) not in (int, float) or not math.isfinite(value):
        log.warning("policy drops metric=%s: it is no finite number", shown(name))
        return False
    if not policy.lets_out(name):
        log.info("policy drops metric=%s", shown(name))
        return False
    return True
