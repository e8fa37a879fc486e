"""A real site behind its policy: what it still answers, and that nothing of it goes round the checks."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from cli.site.policy.ledger import Ledger
from core.errors import BaseMismatch, PolicyRefused
from core.tree import norm
from core.types import HelloRequest
from tests import tiny
from tests.cli.site.policy.guarded import STRICT, greeting, guarded, order, with_policy


def test_a_run_within_the_policy_is_answered(tmp_path):
    guard = guarded(tmp_path)
    said = guard.hello(greeting(guard))
    assert (said["examples"], said["row_counts"], said["truth"]) == (20, {}, None)
    update = guard.train(order(guard))
    assert update.examples == said["examples"], "the server holds the one against the other"
    assert 0 < norm(update.trees["delta"]) <= 1.0
    assert {"loss", "rewards/margins", "seconds/train"} <= update.metrics.keys()
    score = guard.evaluate(order(guard))
    assert score.examples == 20
    assert 0 <= score.metrics["logps/accuracies"] <= 1


def test_without_limits_the_answers_are_the_sites_own(tmp_path):
    guard = with_policy(guarded(tmp_path), updates="clear", round_counts_to=1)
    mine, theirs = guard.train(order(guard)), guard.site.train(order(guard))
    assert all(mine.trees["delta"][n].equal(t) for n, t in theirs.trees["delta"].items())
    assert (mine.examples, mine.tokens, mine.metrics.keys()) == (
        theirs.examples,
        theirs.tokens,
        theirs.metrics.keys(),
    )


def test_updates_are_clipped_and_noised_at_the_site(tmp_path):
    clear = with_policy(guarded(tmp_path), updates="clear")
    size = norm(clear.train(order(clear)).trees["delta"])
    clipped = with_policy(clear, updates="clipped", max_norm=size / 10)
    assert norm(clipped.train(order(clear)).trees["delta"]) == pytest.approx(size / 10, rel=1e-4)
    noised = with_policy(clear, updates="noised", max_norm=size / 10, noise_multiplier=1.0)
    first, again = (noised.train(order(clear)).trees["delta"] for _ in range(2))
    assert norm(first) > size
    assert all(first[n].equal(again[n]) for n in first), "a repeat tells nothing new"


def test_a_base_of_another_fingerprint_is_refused_before_rows_are_read(tmp_path):
    guard = with_policy(guarded(tmp_path), models=(("toy", "0" * 12),))
    with pytest.raises(PolicyRefused, match=r"model.name = 'toy' .* this site allows 000000000000"):
        guard.hello(greeting(guard))
    with pytest.raises(BaseMismatch):
        guarded(tmp_path).hello(HelloRequest("r", "f" * 64))


def test_pickled_weights_are_for_policies_that_allow_them(tmp_path):
    """Refused before anything is unpickled; without a word in the policy, too."""
    folder = tiny.folder(tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    guard = with_policy(
        guarded(tmp_path, model__name=str(folder)), models=((str(folder), ""),), allow_bin=False
    )
    with pytest.raises(PolicyRefused, match="allow-bin"):
        guard.hello(HelloRequest("r"))
    assert not list(tmp_path.rglob("converted"))
    assert with_policy(guard, allow_bin=True).hello(HelloRequest("r"))["client"] == 0


def test_what_is_refused_costs_nothing_and_leaves_no_memory(tmp_path):
    guard = guarded(tmp_path, strategy__name="local")
    with pytest.raises(PolicyRefused, match=r"strategy.name = 'local'"):
        guard.train(order(guard))
    assert not (guard.site.state_dir / "memory").exists()
    assert not (guard.site.state_dir / "policy").exists()


def test_a_resent_order_is_answered_when_the_budget_is_spent(tmp_path):
    guard = with_policy(guarded(tmp_path), max_total_rounds=1)
    first = guard.train(order(guard))
    again = guarded(tmp_path, guard.policy).train(order(guard))
    assert all(first.trees["delta"][n].equal(t) for n, t in again.trees["delta"].items())
    with pytest.raises(PolicyRefused, match="all 1 answers to train"):
        guard.train(order(guard, rnd=2))


def test_selectors_are_compared_within_the_policy(tmp_path):
    """FedBiscuit's orders: several adapters, a comparison on rows set aside."""
    policy = {"strategies": ("fedbiscuit",), "tasks": ("selector",), "min_rows": 2, "round_counts_to": 1}
    keys = {"task.name": "selector", "strategy.name": "fedbiscuit", "strategy.grouping-fraction": 0.2,
            "train.max-length": 512}  # fmt: skip
    guard = with_policy(guarded(tmp_path, STRICT, **keys), **policy)
    tree = order(guard).trees["global"]
    both = {"trees": {"c0": tree, "c1": tree}, "adapter": "c0"}
    asked = replace(order(guard, compare=("c0", "c1"), vote="c0:1,c1:2"), **both)
    assert {"loss/c0", "loss/c1", "vote/accuracy"} <= guard.evaluate(asked).metrics.keys()
    few = with_policy(guard, min_rows=20)
    with pytest.raises(PolicyRefused, match=r"evaluate .* min-rows = 20"):
        few.evaluate(asked)


def test_the_ledger_is_beside_the_sites_memory(tmp_path):
    guard = guarded(tmp_path)
    guard.train(order(guard))
    assert guard.ledger == Ledger(tmp_path / "home-0" / "policy" / "0")
    assert (tmp_path / "home-0" / "policy" / "0" / "ledger.jsonl").read_text().count("\n") == 2
