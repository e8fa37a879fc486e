"""By hand, and against flwr's own FedMedian, FedTrimmedAvg, Krum and MultiKrum."""

import tempfile
from pathlib import Path

import pytest
import torch
from flwr.serverapp import strategy as theirs

from core.config import parse
from core.errors import CheckpointError, ConfigError
from core.plugins import build
from core.types import ServerState, Update
from strategies.aggregation import robust
from tests.strategies.simulated_rounds import close, merge
from tests.strategies.test_aggregators import SIZES, X, flowers_rounds


def combined(values: list[float], rule: str, share: float = 0.25) -> float:
    fold = robust.Robust(robust.RULES[rule](share), lambda update: 1.0, Path(tempfile.gettempdir()))
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


def test_krum_looks_at_the_k_minus_f_minus_2_nearest():
    """K = 6 and f = 1, so 3: by the 2 nearest the most central update would be 1, by the 4 nearest it would be 4."""
    assert combined([0.0, 1.0, 2.0, 4.0, 9.0, 10.0], "krum", 0.2) == 2.0


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


def test_multi_krum_leaves_the_liars_out(tmp_path):
    rng = torch.Generator().manual_seed(3)
    values = [{"w": torch.randn(50, generator=rng)} for _ in range(10)]
    values[4]["w"] += 40
    values[7]["w"] -= 40
    fold = robust.Robust(robust.RULES["multi-krum"](0.2), lambda update: 1.0, tmp_path)
    for client, delta in enumerate(values):
        fold.add(Update(client, 1, "global", {"delta": delta}, {}))
    honest = torch.stack([v["w"] for i, v in enumerate(values) if i not in (4, 7)])
    torch.testing.assert_close(fold.result()["global"]["delta"]["w"], honest.mean(0))


@pytest.mark.parametrize(
    ("share", "clients", "f"), [(0.29, 100, 29), (0.2, 5, 1), (0.2, 4, 0), (0.35, 20, 7)]
)
def test_the_number_of_hostile_clients_is_the_floor_of_the_share_as_it_is_written(share, clients, f):
    """0.29 * 100 is 28.999999999999996 in binary, and 0.35 * 20 is 7.0."""
    assert robust.hostile(share, clients) == f


@pytest.mark.parametrize(
    ("rule", "weak", "strong"),
    [
        ("median", [1, 2], [3, 4, 5]),
        ("trimmed-mean", [2, 3, 4], [5, 6, 100]),
        ("multi-krum", [3, 4], [5, 10]),
        ("krum", [3, 4], [5, 10]),
    ],
)
def test_a_rule_says_among_how_many_updates_it_protects_nobody(rule, weak, strong):
    """At the default share of 0.2: floor(0.2 K) is 0 below five."""
    built = robust.RULES[rule](0.2)
    assert all(built.weakness(clients) for clients in weak)
    assert not any(built.weakness(clients) for clients in strong)
    assert built.fewest(weak[-1]) == strong[0]


def test_krum_needs_two_f_plus_two_clients_and_one_more():
    """A share of 0.4: f = 2 of 5 and 6 clients are too many, f = 2 of 7 are not."""
    built = robust.RULES["krum"](0.4)
    assert [bool(built.weakness(clients)) for clients in (5, 6, 7)] == [True, True, False]


@pytest.mark.parametrize("rule", ["trimmed-mean", "multi-krum", "krum"])
def test_a_protection_of_three_sites_that_does_nothing_is_refused_at_the_start(rule):
    keys = {"strategy.robust": rule, "strategy.min-available-nodes": 3}
    with pytest.raises(ConfigError) as refusal:
        parse(keys)
    for fact in (rule, "min-available-nodes = 3", "fraction-train = 1", "needs 5 updates", "median"):
        assert fact in str(refusal.value)
    parse({**keys, "strategy.min-available-nodes": 5})
    with pytest.raises(ConfigError, match="round of 4 updates"):
        parse({**keys, "strategy.min-available-nodes": 8, "strategy.fraction-train": 0.5})
    parse(
        {
            **keys,
            "strategy.min-available-nodes": 8,
            "strategy.fraction-train": 0.5,
            "strategy.sampling": "all",
        }
    )


def test_selectors_share_the_clients_of_a_round():
    keys = {"strategy.name": "fedbiscuit", "strategy.robust": "median", "run.num-server-rounds": 9}
    with pytest.raises(ConfigError, match="round of 2 updates"):
        parse({**keys, "strategy.min-available-nodes": 8})
    parse({**keys, "strategy.min-available-nodes": 9})


def test_a_round_with_too_few_answers_is_remarked_by_adapter():
    strategy = build("strategies", "fedavg", {"robust": "trimmed-mean"})
    answers = [Update(client, 1, "global", {}, {}) for client in range(5)]
    assert strategy.remarks(answers) == []
    (remark,) = strategy.remarks(answers[:4])
    assert "trimmed-mean" in remark
    assert "global" in remark
    assert build("strategies", "fedavg", {}).remarks(answers[:1]) == []


def test_updates_wait_in_the_spool_alone_and_leave_nothing_there(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    fold = robust.Robust(robust.RULES["median"](0.2), lambda update: 1.0, tmp_path)
    for client in range(3):
        fold.add(Update(client, 1, "global", {"delta": {"w": torch.full((4,), float(client))}}, {}))
    assert list(tmp_path.iterdir()) == []
    assert fold.result()["global"]["delta"]["w"].tolist() == [1.0] * 4


def test_a_spool_that_cannot_be_written_is_named(tmp_path):
    spool = tmp_path / "spool"
    fold = robust.Robust(robust.RULES["median"](0.2), lambda update: 1.0, spool)
    with pytest.raises(CheckpointError, match=str(spool)):
        fold.add(Update(0, 1, "global", {"delta": {"w": torch.zeros(4)}}, {}))
