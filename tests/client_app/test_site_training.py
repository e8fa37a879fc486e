"""Local training at a site: a function of the order, the round and the client."""

import math
from dataclasses import replace

import pytest
import torch

from client_app.node import Node
from client_app.site import Site
from core.errors import ConfigError
from core.tree import add, scale
from core.types import HelloRequest
from tasks.forward.setup import loads
from tasks.model.adapter import initial_adapter
from tests.client_app.orders import Bent, order


def dropout_mask(site: Site, rnd: int) -> torch.Tensor:
    """The first entries that the first dropout module of a local training sets to zero."""
    masks: list[torch.Tensor] = []

    def record(module, inputs, output):
        if isinstance(module, torch.nn.Dropout) and module.training and not masks:
            masks.append((output == 0).flatten()[:256])

    hook = torch.nn.modules.module.register_module_forward_hook(record)
    try:
        site.train(order(site, rnd=rnd))
    finally:
        hook.remove()
    return masks[0]


def test_dropout_masks_differ_between_rounds_and_between_clients(site):
    """In SFT, where dropout acts; the same client draws the same mask again in the same round."""
    keys = {"task.name": "sft", "lora.dropout": 0.5}
    first, again = dropout_mask(site(**keys), 1), dropout_mask(site(**keys), 1)
    assert first.equal(again)
    assert 64 < first.sum() < 192
    assert not first.equal(dropout_mask(site(**keys), 2)), "of the next round"
    assert not first.equal(dropout_mask(site(1, **keys), 1)), "of another client"


def test_training_is_a_function_of_its_order(site, tmp_path):
    """Same order, same bytes: with a cold cache, with a warm one, and from another folder."""
    one, two = site(), Site(site().config, Node(0, 3, state_dir=str(tmp_path / "elsewhere")))
    deltas = [s.train(order(s)).trees["delta"] for s in (one, one, two)]
    assert any(t.any() for t in deltas[0].values())
    assert all(deltas[0][n].equal(d[n]) for d in deltas[1:] for n in d)


def test_the_seed_the_round_and_the_client_change_the_training(site):
    one = site()
    deltas = [
        one.train(order(one)).trees["delta"],
        one.train(order(one, rnd=2)).trees["delta"],
        site(1).train(order(site(1))).trees["delta"],
        site(run__seed=7).train(order(site(run__seed=7), initial_adapter(one.base(), 42))).trees["delta"],
    ]
    first = [torch.cat([t.flatten() for t in d.values()]) for d in deltas]
    assert len({tuple(d.tolist()) for d in first}) == 4


def test_the_reference_stays_the_frozen_base_in_a_later_round(site):
    """TRL's trap: with the round's start as reference, every round would begin at a loss of ln 2."""
    one = site(train__local_steps=1, train__learning_rate=1e-9)
    first = one.train(order(one))
    assert first.metrics["loss"] == pytest.approx(math.log(2), abs=1e-6)
    start = initial_adapter(one.base(), 42)
    moved = add(start, scale({n: torch.ones_like(t) for n, t in start.items()}, 0.05))
    later = one.train(order(one, moved, rnd=1))
    assert abs(later.metrics["loss"] - math.log(2)) > 1e-3
    assert later.metrics["rewards/chosen"] != 0


def test_centralized_training_sees_every_row(site):
    one = site(strategy__name="centralized")
    update = one.train(order(one, rows="all", **{"steps-factor": 3}))
    assert update.examples == 36


def test_both_scaffolds_are_one_under_plain_sgd(site):
    """Without clipping, a shift of the gradient is a shift of the weight, and option II is the mean gradient: the
    round's own rate is in both. With a control in the order, and not without, the steps are corrected."""
    plain = {"train__optimizer": "sgd", "train__max_grad_norm": 0.0, "train__lr_schedule": "linear"}
    sites = [site(strategy__name="scaffold", strategy__variant=v, **plain) for v in ("paper", "openfedllm")]
    x = {n: t + 0.05 for n, t in initial_adapter(sites[0].base(), 42).items()}
    c = {n: torch.full_like(t, 3.0) for n, t in x.items()}
    trees = {"global": x, "control": c}
    paper, theirs = (one.train(replace(order(one, x, rnd=7), trees=trees)).trees for one in sites)
    free = sites[1].train(replace(order(sites[1], x, rnd=7), trees={**trees, "control": scale(c, 0.0)})).trees
    for name, delta in paper["delta"].items():
        torch.testing.assert_close(theirs["delta"][name], delta, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(theirs["control"][name], paper["control"][name], rtol=1e-2, atol=1e-3)
        assert not torch.allclose(free["delta"][name], delta, rtol=1e-2)


def test_the_rate_falls_with_the_rounds_and_is_reported(site):
    """Linear over 12 rounds: 5e-4 in the first, half of it in the seventh."""
    one = site(train__lr_schedule="linear")
    rates = [one.train(order(one, rnd=rnd)).metrics["learning_rate"] for rnd in (1, 7)]
    assert rates == pytest.approx([5e-4, 2.5e-4])
    constant = site()
    full = constant.train(order(constant, rnd=7)).trees["delta"]
    assert not any(
        t.equal(full[n]) for n, t in one.train(order(one, rnd=7)).trees["delta"].items() if t.any()
    )


def test_trl_runs_rules_that_leave_the_steps_alone(site):
    """Refused when the client is asked who it is, before anything is trained."""
    one = site(train__engine="trl")
    one.hello(HelloRequest("r"))
    with pytest.raises(
        ConfigError, match=r"strategy.name = 'fedavg' changes the local .*steps.*'trl' cannot do"
    ):
        Bent(one.config, one.node).hello(HelloRequest("r"))


def test_ten_rounds_load_the_base_once(site):
    before = loads()
    for rnd in range(1, 4):
        for client in range(2):
            here = site(client)
            here.train(order(here, rnd=rnd))
    assert loads() - before <= 1
