import pytest
import torch

from core.errors import ConfigError
from core.types import ServerState, Update
from strategies.fedavg import FedAvg
from strategies.probe import Probe
from tests.strategies.simulated_rounds import close, merge


def start(entries: int) -> ServerState:
    return ServerState(1, 0, {"global": {"w": torch.zeros(entries, dtype=torch.float64)}})


def updates(deltas: dict[int, list[float]]) -> list[Update]:
    return [
        Update(c, 10, "global", {"delta": {"w": torch.tensor(d, dtype=torch.float64)}}, {})
        for c, d in deltas.items()
    ]


def test_the_matrices_by_hand():
    """Deltas (2, 2), (2, 0), (0, 2): cosines 1/sqrt 2 and 0; mean (4/3, 4/3); what is left is (2, 2)/3, (2, -4)/3,
    (-4, 2)/3 with cosines -1/sqrt 10 and -16/20. Clients 0 and 1 both move in one entry, the same way; 1 and 2 in
    none: one half."""
    after, _ = merge(Probe(), start(2), 1, updates({0: [2, 2], 1: [2, 0], 2: [0, 2]}))
    found = after.facts["conflict"]
    assert found["clients"] == [0, 1, 2]
    root = 0.707107
    assert found["cosine"] == [[1, root, root], [root, 1, 0], [root, 0, 1]]
    assert found["apart"] == [[1, -0.316228, -0.316228], [-0.316228, 1, -0.8], [-0.316228, -0.8, 1]]
    assert found["signs"] == [[1, 1, 1], [1, 1, 0.5], [1, 0.5, 1]]


def test_rounds_add_up_and_who_was_away_keeps_its_sum():
    state, _ = merge(Probe(), start(2), 1, updates({0: [1, 0], 1: [0, 1]}))
    state, _ = merge(Probe(), state, 2, updates({0: [0, 1], 2: [1, 1]}))
    close(
        state.memory["probe.whole"],
        {c: torch.tensor(v, dtype=torch.float64) for c, v in {"0": [1, 1], "1": [0, 1], "2": [1, 1]}.items()},
    )
    assert state.facts["conflict"]["cosine"][0] == [1, 0.707107, 1]


def test_the_adapter_is_fedavgs_and_a_few_entries_are_watched():
    """100 of 1000 entries, the same in both rounds and of both clients."""
    drawn = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probe, plain = start(1000), start(1000)
    for rnd in (1, 2):
        now = updates({0: drawn[2 * rnd - 2].tolist(), 1: drawn[2 * rnd - 1].tolist()})
        probe, _ = merge(Probe(probe_entries=100), probe, rnd, now)
        plain, _ = merge(FedAvg(), plain, rnd, now)
    close(probe.adapters["global"], plain.adapters["global"], atol=0)
    kept = probe.memory["probe.whole"]["0"]
    assert len(kept) == 100
    assert set(kept.tolist()) <= set((drawn[0] + drawn[2]).tolist())


def test_no_entries_are_refused():
    with pytest.raises(ConfigError, match=r"strategy.probe-entries"):
        Probe(probe_entries=0)


def test_of_loras_factors_only_b_is_watched():
    deltas = {0: [1.0, 0.0], 1: [0.0, 1.0]}
    both = [
        Update(c, 10, "global", {"delta": {"m.lora_A.w": torch.ones(3), "m.lora_B.w": torch.tensor(d)}}, {})
        for c, d in deltas.items()
    ]
    state = ServerState(1, 0, {"global": {"m.lora_A.w": torch.zeros(3), "m.lora_B.w": torch.zeros(2)}})
    after, _ = merge(Probe(), state, 1, both)
    assert after.facts["conflict"]["cosine"] == [[1, 0], [0, 1]]
