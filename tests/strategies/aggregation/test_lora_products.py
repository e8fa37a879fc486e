"""The products that lora.aggregation computes, against dense ones in float64."""

from dataclasses import replace

import pytest
import torch

from core.config import parse
from core.factors import MERGED, modules, rank_of
from core.tree import norm
from core.types import Order, ServerState, Update
from strategies.aggregation.fold import Merged
from tests.strategies.aggregation.lora_rounds import (
    ALPHA,
    EVERYONE,
    SPOOL,
    R,
    a_round,
    adapter,
    begin,
    matrices,
    strategy,
)


def server_product(state: ServerState) -> dict[str, torch.Tensor]:
    """s B A + M of every module."""
    out, merged = (
        matrices(state.adapters["global"], ALPHA / R),
        matrices(state.memory.get(f"global.{MERGED}", {})),
    )
    return {n: m + merged.get(n, 0.0) for n, m in out.items()}


def clients_product(
    orders: list[Order], updates: list[Update], weights: list[float], clip: float = 0.0
) -> dict:
    """M + sum_k p_k s_k B_k A_k, dense and in float64."""
    out = dict.fromkeys(modules(orders[0].trees["global"]), 0.0)
    for order, update, weight in zip(orders, updates, weights, strict=True):
        size = update.metrics["norm/delta"]
        factor = clip / size if clip and size > clip else 1.0
        after = {
            n: t.double() + factor * update.trees["delta"][n].double()
            for n, t in order.trees["global"].items()
        }
        for n, product in matrices(after, ALPHA / rank_of(after)).items():
            out[n] = out[n] + weight / sum(weights) * product
    merged = matrices(orders[0].trees.get(MERGED, {}))
    return {n: product + merged.get(n, 0.0) for n, product in out.items()}


def distance(got: dict, want: dict) -> float:
    return max(float((got[n] - want[n]).norm() / want[n].norm()) for n in want)


@pytest.mark.parametrize("clip", [0.0, 0.7])
@pytest.mark.parametrize(
    ("method", "ranks"), [("fedex", ""), ("flora", ""), ("flora", "4,2,1"), ("flexlora", "1,1,2")]
)
def test_the_server_has_the_mean_of_the_clients_products(method, ranks, clip):
    """Over three rounds, to 1e-6; flexlora where its rank, 4, suffices for the sum."""
    chosen = strategy(method, lora__client_ranks=ranks, strategy__clip_norm=clip)
    state = begin(chosen, adapter(0, 0.0 if method == "flora" else 1.0))
    for rnd in (1, 2, 3):
        state, orders, updates, _ = a_round(chosen, state, rnd)
        want = clients_product(orders, updates, [10.0, 20.0, 30.0], clip)
        assert distance(server_product(state), want) < 1e-6


def test_the_mean_of_tensors_is_another_product():
    """What the exact methods are there for, and that the tests above can tell."""
    chosen = strategy("separate")
    state, orders, updates, _ = a_round(chosen, begin(chosen, adapter(0)), 1)
    assert distance(server_product(state), clients_product(orders, updates, [10.0, 20.0, 30.0])) > 1e-3


@pytest.mark.parametrize("method", ["ffa", "rolora"])
def test_with_one_factor_fixed_the_mean_is_exact(method):
    chosen = strategy(method)
    state = begin(chosen, adapter(0))
    for rnd in (1, 2):
        x = state.adapters["global"]
        state, orders, updates, _ = a_round(chosen, state, rnd)
        whole = [replace(o, trees={"global": x}) for o in orders]
        zero = {n: torch.zeros_like(t) for n, t in x.items()}
        filled = [replace(u, trees={"delta": {**zero, **u.trees["delta"]}}) for u in updates]
        want = clients_product(whole, filled, [10.0, 20.0, 30.0])
        assert distance(server_product(state), want) < 1e-6


def test_fedex_by_hand():
    """A = B = 1, s = 2; deltas (1, 1) and (-1, -1) with p = 1/2: mean product 2 (4 + 0)/2 = 4, of means 2, M = 2."""
    chosen = parse({"lora.aggregation": "fedex", "lora.r": 1, "lora.alpha": 2}).build_strategy()
    one = {"m.lora_A.weight": torch.ones(1, 1), "m.lora_B.weight": torch.ones(1, 1)}
    updates = [
        Update(c, 5, "global", {"delta": {n: sign * t for n, t in one.items()}}, {"norm/delta": 1.0})
        for c, sign in ((0, 1.0), (1, -1.0))
    ]
    state = begin(chosen, one)
    fold = chosen.fold(state, 1, SPOOL)
    for update in updates:
        fold.add(update)
    state, metrics = chosen.merge_train(state, 1, Merged(tuple(updates), fold.result()))
    assert {n: t.item() for n, t in state.adapters["global"].items()} == dict.fromkeys(one, 1.0)
    merged = state.memory[f"global.{MERGED}"]
    assert (merged["m.lora_B.weight"] @ merged["m.lora_A.weight"]).item() == pytest.approx(2.0)
    assert metrics["lora/rank"] == 1.0


def test_a_small_residual_is_not_drowned_in_rounding():
    """Deltas that agree but for a ten-thousandth: still (3 - 1) x 4 directions, and no more."""
    chosen = strategy("fedex")
    state = begin(chosen, adapter(0))
    common, updates, fold = adapter(50), [], chosen.fold(state, 1, SPOOL)
    for c in EVERYONE:
        own = adapter(c.id + 1)
        delta = {n: t + 1e-4 * own[n] for n, t in common.items()}
        updates.append(Update(c.id, c.examples, "global", {"delta": delta}, {"norm/delta": norm(delta)}))
        fold.add(updates[-1])
    _, metrics = chosen.merge_train(state, 1, Merged(tuple(updates), fold.result()))
    assert metrics["lora/rank"] == 8.0


def test_flexlora_gives_each_client_the_best_of_its_rank():
    """Against the dense SVD of sum_k p_k s_k B_k A_k: the server at rank 4, the clients at 4, 2 and 1."""
    chosen = strategy("flexlora", lora__client_ranks="4,2,1")
    state, orders, updates, metrics = a_round(chosen, begin(chosen, adapter(0)), 1)
    want = clients_product(orders, updates, [10.0, 20.0, 30.0])
    lost = whole = 0.0
    for order in chosen.plan_train(state, 2, EVERYONE):
        rank = rank_of(order.trees["global"])
        assert rank == (4, 2, 1)[order.client]
        got = matrices(order.trees["global"], ALPHA / rank)
        for n, dense in want.items():
            u, sigma, vh = torch.linalg.svd(dense)
            best = u[:, :rank] * sigma[:rank] @ vh[:rank]
            torch.testing.assert_close(got[n], best, rtol=0, atol=1e-5)
            if rank == R:
                lost, whole = lost + float(sigma[R:].square().sum()), whole + float(sigma.square().sum())
    assert metrics["lora/lost"] == pytest.approx((lost / whole) ** 0.5, rel=1e-4)


def test_flexloras_empty_places_start_as_lora_does():
    """Zero in A and in B no gradient would ever reach them: three clients of rank 1 fill three of four places."""
    chosen = strategy("flexlora", lora__client_ranks="1")
    state = a_round(chosen, begin(chosen, adapter(0)), 1)[0]
    for b, a in modules(state.adapters["global"]).values():
        assert not b[:, 3].any()
        assert a[3].any()
        assert b[:, 2].any()


@pytest.mark.parametrize("method", ["fedex", "flora"])
def test_the_merged_part_has_no_more_ranks_than_are_asked_for(method):
    """3 clients of rank 4: at most 5 in x, 9 in y; capped at 2 the best stays and what is lost is told."""
    exact, capped = strategy(method), strategy(method, lora__residual_rank=2)
    x = adapter(0, 0.0)
    whole, _, _, metrics = a_round(exact, begin(exact, x), 1)
    cut, _, _, told = a_round(capped, begin(capped, x), 1)
    full, best = (matrices(s.memory[f"global.{MERGED}"]) for s in (whole, cut))
    assert "lora/lost" not in metrics
    assert (metrics["lora/rank"], told["lora/rank"]) == (9.0 if method == "flora" else 8.0, 2.0)
    lost = sum(float(torch.linalg.svdvals(m)[2:].square().sum()) for m in full.values())
    assert sum(float((full[n] - best[n]).square().sum()) for n in full) == pytest.approx(lost, rel=1e-4)
    assert told["lora/lost"] == pytest.approx(
        (lost / sum(float(m.square().sum()) for m in full.values())) ** 0.5
    )
