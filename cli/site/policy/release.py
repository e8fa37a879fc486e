"""What leaves a site: the trees that were asked for, clipped and noised, and the metrics and counts it allows."""

import hashlib
import hmac
import logging
import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from cli.site.policy.ledger import content
from cli.site.policy.rules import Policy, quote
from client_app.declarations import declared_metrics, is_declared
from core.errors import PolicyRefused
from core.factors import is_private
from core.sections import Config
from core.tree import Tree, norm, scale
from core.types import Json, Order, Update

log = logging.getLogger(__name__)


def release(policy: Policy, config: Config, kind: str, order: Order, update: Update, secret: bytes) -> Update:
    """Return the update as it may leave the site.

    Raises PolicyRefused if it holds trees that were not asked for, or was computed from too few rows.
    """
    if update.examples < policy.min_rows:
        raise PolicyRefused(
            f"{kind} would use fewer rows than this site's policy requires, min-rows = {policy.min_rows}"
        )
    _check_trees(config, kind, order, update)
    trees = {name: _clipped(policy, tree) for name, tree in update.trees.items()}
    if policy.updates == "noised":
        trees = {name: _noised(policy, tree, secret, order, name) for name, tree in trees.items()}
    declared = declared_metrics(config)
    metrics = {n: float(v) for n, v in update.metrics.items() if _may_leave(policy, declared, n, v)}
    # field by field: a field that is not named here stays at the site
    return Update(
        client=update.client,
        examples=policy.rounded(update.examples),
        adapter=update.adapter,
        trees=trees,
        metrics=metrics,
        tokens=policy.rounded(update.tokens),
        saved_memory=update.saved_memory,
        loads=update.loads,
    )


def release_facts(policy: Policy, hello: Mapping[str, Json]) -> Json:
    """Return a hello as it may leave: client, number of rows and base model, and the other facts that the policy names.

    The site's name may leave because `accord provision` gave it; only simulated clients take names from their data,
    and these have no policy.
    """
    if hello["examples"] < policy.min_rows:
        raise PolicyRefused(
            f"this site has fewer rows than its policy requires, min-rows = {policy.min_rows}"
        )
    out = {name: hello[name] for name in ("client", "clients", "base", "name") if name in hello}
    skipped = sum(hello["skipped"].values())  # summed, because the reasons name columns of the rows
    row_counts = {name: float(policy.rounded(int(count))) for name, count in hello["row_counts"].items()}
    return {
        **out,
        "examples": policy.rounded(hello["examples"]),
        "row_counts": row_counts if "row-counts" in policy.facts else {},
        "data": hello["data"] if "data" in policy.facts else "",
        "skipped": {"rows": policy.rounded(skipped)} if "skipped" in policy.facts else {},
        "truth": hello["truth"] if "truth" in policy.facts else None,
    }


def _check_trees(config: Config, kind: str, order: Order, update: Update) -> None:
    """Raise PolicyRefused unless the update has the strategy's trees in the trained adapter's layout, all finite."""
    rule = config.build_strategy().local_rule()
    sends = set(rule.sends) if kind == "train" else set()
    if set(update.trees) != sends:
        raise PolicyRefused(f"{kind} would send trees {sorted(update.trees)}; allowed are {sorted(sends)}")
    shapes = {n: t.shape for n, t in order.trees[order.adapter].items() if rule.leaves(n, order.round)}
    for name, tree in update.trees.items():
        if bad := [n for n, t in tree.items() if is_private(n) or shapes.get(n) != t.shape]:
            raise PolicyRefused(
                f"{name} would send {bad[0]!r}, which is not a tensor of the adapter that was ordered"
            )
        if not math.isfinite(norm(tree)):
            raise PolicyRefused(f"{name} would send NaN or Inf")


def _clipped(policy: Policy, tree: Tree) -> Tree:
    """Scale a tree down to the L2 norm max-norm, unless updates = "clear"."""
    size = norm(tree)
    return (
        tree if policy.updates == "clear" or size <= policy.max_norm else scale(tree, policy.max_norm / size)
    )


def _noised(policy: Policy, tree: Tree, secret: bytes, order: Order, name: str) -> Tree:
    """Add Gaussian noise of standard deviation noise-multiplier x max-norm to every entry.

    The noise is a function of the site's secret and the content of the tree. So a repeated answer has the same noise
    and averaging repetitions does not remove it; answers that differ in any bit have independent noise, so that their
    difference does not cancel it.
    """
    text = "\x1f".join([order.run, str(order.round), order.adapter, name, content(tree)])
    key = hmac.new(secret, text.encode(), hashlib.sha256).digest()
    draw = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "big")))
    sigma = policy.noise_multiplier * policy.max_norm
    return {n: t + torch.from_numpy(draw.normal(0.0, sigma, tuple(t.shape))).to(t) for n, t in tree.items()}


def _may_leave(policy: Policy, declared: Iterable[str], name: str, value: Json) -> bool:
    if type(value) not in (int, float) or not math.isfinite(value):
        log.warning("policy drops metric=%s: it is not a finite number", quote(name))
        return False
    if not (is_declared(name, declared) and policy.allows_metric(name)):
        log.info("policy drops metric=%s", quote(name))
        return False
    return True
