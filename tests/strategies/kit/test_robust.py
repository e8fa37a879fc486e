"""By hand, and against flwr's own FedMedian, FedTrimmedAvg, Krum and MultiKrum."""

import pytest
import torch
from flwr.serverapp import strategy as theirs

from core.plugins import build
from core.types import ServerState, Update
from strategies.kit import robust
from tests.strategies.rounds import close, merge
from tests.strategies.test_aggregators import SIZES, X, flowers_rounds


def combined(values: list[float], rule: str, share: float = 0.25) -> float:
    fold = robust.Robust(robust.RULES[rule](share), lambda update: 1.0)
    for client, value in enumerate(values):
        fold.add(Update(client, 1, "global", {"delta": {"w": torch.tensor([value])}}, {}))
    return fold.result()["global"]["delta"]["w"].item()


def test_one_liar_of_five_by_hand():
    """1, 2, 3, 4 and a liar: median 3; without the smallest and the largest (2 + 3 + 4)/3.

    krum with f = 1 looks at the 2 nearest: the squared distances sum to 5, 2, 2, 5 and much, so 2 comes first;
    multi-krum keeps four, which are the honest ones.
    """
    liar = [1.0, 2.0, 3.0, 4.0, 1000.0]
    assert combined(liar, "median") == 3.0
    assert combined(liar, "trimmed-mean") == 3.0
    assert combined(liar, "krum") == 2.0
    assert combined(liar, "multi-krum") == 2.5
    assert combined([1.0, 2.0, 3.0, 4.0, -1000.0], "median") == 2.0


FLOWERS = {
    "median": (theirs.FedMedian, {}),
    "trimmed-mean": (theirs.FedTrimmedAvg, {"beta": 0.25}),
    "krum": (theirs.Krum, {"num_malicious_nodes": 1}),
}


@pytest.mark.parametrize("rule", FLOWERS)
def test_flwrs_own(rule, monkeypatch):
    """With several blocks of entries; four clients of unequal size, whose weights must not matter."""
    monkeypatch.setattr(robust, "BLOCK", 3)
    cls, options = FLOWERS[rule]
    rng = torch.Generator().manual_seed(8)
    noise = lambda t: torch.randn(t.shape, generator=rng, dtype=t.dtype)  # noqa: E731
    rounds = [[{n: noise(t) for n, t in X.items()} for _ in SIZES]]
    (want,) = flowers_rounds(cls(**options), rounds)
    strategy = build("strategies", "fedavg", {"robust": rule, "robust-fraction": 0.25})
    updates = [Update(c, SIZES[c], "global", {"delta": d}, {}) for c, d in enumerate(rounds[0])]
    state, _ = merge(strategy, ServerState(0, 0, {"global": X}), 1, updates)
    close(state.adapters["global"], want, atol=1e-12)


def test_multi_krum_leaves_the_liars_out():
    rng = torch.Generator().manual_seed(3)
    values = [{"w": torch.randn(50, generator=rng)} for _ in range(10)]
    values[4]["w"] += 40
    values[7]["w"] -= 40
    fold = robust.Robust(robust.RULES["multi-krum"](0.2), lambda update: 1.0)
    for client, delta in enumerate(values):
        fold.add(Update(client, 1, "global", {"delta": delta}, {}))
    honest = torch.stack([v["w"] for i, v in enumerate(values) if i not in (4, 7)])
    torch.testing.assert_close(fold.result()["global"]["delta"]["w"], honest.mean(0))
