"""What stays at a site between rounds, and is recalled by round."""

from dataclasses import replace

import pytest
import torch

from client_app.private_memory import Memory
from core.errors import MemoryMissing
from core.tree import add
from tasks.model.adapter import initial_adapter
from tests.client_app.orders import Bent, order


def test_what_local_learns_stays_at_the_site_and_is_recalled(site):
    alone = site(strategy__name="local")
    first = alone.train(order(alone))
    assert first.saved_memory
    assert first.trees["delta"] == {}
    second = alone.train(order(alone, rnd=2, recall=1))
    assert second.metrics["rewards/margins"] != first.metrics["rewards/margins"]
    with pytest.raises(MemoryMissing, match="client 0 has no memory of round 9"):
        alone.train(order(alone, rnd=3, recall=9))


def test_a_control_stays_at_the_site_and_its_change_travels(site):
    """Kept and recalled, c_k goes into the next round: same order, other memory, other result."""
    one = site()
    bent = Bent(one.config, one.node)
    x = initial_adapter(one.base(), 42)
    x = {n: t + 0.05 for n, t in x.items()}
    c = {n: torch.zeros_like(t) for n, t in x.items()}
    first = bent.train(replace(order(one, x), trees={"global": x, "control": c}))
    assert first.saved_memory
    assert {n for n, t in first.trees["delta"].items() if t.any()} == first.trees["control"].keys()
    assert all(".lora_B." in n and t.any() for n, t in first.trees["control"].items())
    again = bent.train(replace(order(one, x, rnd=2, recall=1), trees={"global": x, "control": c}))
    fresh = bent.train(replace(order(one, x, rnd=2), trees={"global": x, "control": c}))
    assert any(not again.trees["delta"][n].equal(t) for n, t in fresh.trees["delta"].items())


def test_moments_stay_at_the_site_and_a_round_is_repeated_to_the_byte(site):
    """Recalled at the round the server names, also after a later round that never counted; nothing of it is sent."""
    one = site(train__optimizer_state="keep")
    x = initial_adapter(one.base(), 42)
    first = one.train(order(one, x))
    assert first.saved_memory
    assert first.trees.keys() == {"delta"}
    moved = add(x, first.trees["delta"])
    second = one.train(order(one, moved, rnd=2, recall=1))
    version = one.state_dir / "memory" / "r" / "0" / "00002" / "tensors.safetensors"
    written = version.read_bytes()
    for _ in range(2):
        again = one.train(order(one, moved, rnd=2, recall=1))
        assert all(again.trees["delta"][n].equal(t) for n, t in second.trees["delta"].items())
        assert version.read_bytes() == written
    forgetful = site()
    afresh = forgetful.train(order(forgetful, moved, rnd=2))
    assert not afresh.saved_memory
    assert any(not afresh.trees["delta"][n].equal(t) for n, t in second.trees["delta"].items())
    kept = Memory(one.state_dir, "r", 0).load(2)
    assert kept.keys() == {"adam.exp_avg", "adam.exp_avg_sq", "adam.step"}
    assert {t.item() for t in kept["adam.step"].values()} == {4.0}
    assert one.evaluate(order(one, moved, rnd=2, recall=2)).trees == {}


def test_moments_and_a_clients_own_adapter_are_kept_side_by_side(site):
    alone = site(train__optimizer_state="keep", strategy__name="local")
    alone.train(order(alone))
    kept = Memory(alone.state_dir, "r", 0).load(1)
    assert kept.keys() == {"own", "adam.exp_avg", "adam.exp_avg_sq", "adam.step"}
    assert len({frozenset(tree) for tree in kept.values()}) == 1
