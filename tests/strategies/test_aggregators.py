"""Every server optimiser in its three arithmetics: OpenFedLLM's and the papers' vectors, flwr's own strategies."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as theirs

from core.errors import ConfigError
from core.plugins import build
from core.types import ServerState, Update
from tests.loopback import Loopback
from tests.strategies.simulated_rounds import close, merge, tree64, vector

X = {
    "lora_A": torch.tensor([[0.5, -1.0]], dtype=torch.float64),
    "lora_B": torch.zeros(2, 1, dtype=torch.float64),
}
SIZES = [10, 30, 20, 40]


def keys_of(name: str, hyper: dict) -> dict:
    """The vectors' hyper-parameters under the strategies' keys."""
    adaptive = {"server-learning-rate": hyper["eta"], "tau": hyper["tau"]}
    moments = {"beta-1": hyper["beta1"], "beta-2": hyper["beta2"]}
    return {
        "fedavg": {}, "fedavgm": {"server-momentum": hyper["beta1"]}, "fedadagrad": adaptive,
        "fedyogi": adaptive | moments, "fedadam": adaptive | moments,
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "name", "variant"),
    [(f"agg_{n}_default", n, "openfedllm") for n in ("fedavg", "fedavgm", "fedadagrad", "fedyogi", "fedadam")]
    + [("paper_fedadagrad", "fedadagrad", "paper"), ("paper_fedyogi", "fedyogi", "paper")],
)
def test_the_vectors(entry, name, variant):
    document = vector(entry)
    given, outputs = document["inputs"], document["outputs"]["per_round"]
    strategy = build("strategies", name, {"variant": variant, **keys_of(name, given["hyper"])})
    state = strategy.init({"global": tree64(given["global_round0"])}, 0)
    rounds = zip(given["sampled_clients_per_round"], given["local_delta"], outputs, strict=True)
    for rnd, (clients, deltas, want) in enumerate(rounds, start=1):
        sizes = given["num_samples_per_client"]
        updates = [Update(c, sizes[c], "global", {"delta": tree64(deltas[str(c)])}, {}) for c in clients]
        state, _ = merge(strategy, state, rnd, updates)
        close(state.adapters["global"], tree64(want["global"]))
        for slot in ("m", "v"):
            if name != "fedadagrad" and want.get(slot) and f"global.{slot}" in state.memory:
                close(state.memory[f"global.{slot}"], tree64(want[slot]))


SCALAR = {
    "fedavg": 0.0035, "fedavgm": 0.00332, "fedadagrad": 0.0009728169300210938,
    "fedyogi": 0.0052903968305728685, "fedadam": 0.005312896949353066,
}  # fmt: skip


@pytest.mark.parametrize("name", SCALAR)
def test_one_parameter_by_hand(name):
    """Spec 9.1: n = [1, 3], three rounds; the values were worked out apart from this code."""
    strategy = build("strategies", name, {"variant": "openfedllm"})
    state = strategy.init({"global": {"w": torch.zeros(1, dtype=torch.float64)}}, 0)
    for rnd, deltas in enumerate([(0.01, -0.002), (0.004, 0.004), (-0.006, 0.0)], start=1):
        updates = [
            Update(c, n, "global", {"delta": {"w": torch.tensor([d], dtype=torch.float64)}}, {})
            for c, (n, d) in enumerate(zip([1, 3], deltas, strict=True))
        ]
        state, _ = merge(strategy, state, rnd, updates)
    assert state.adapters["global"]["w"].item() == pytest.approx(SCALAR[name], abs=1e-12)


def test_the_papers_momentum_gains_one_over_one_minus_beta():
    """Hsu: with D = 1 for ever, x moves by 1, 1.5, 1.75 with beta = 0.5; OpenFedLLM's average by 1, 1, 1."""
    for variant, want in (
        ("paper", [1.0, 2.5, 4.25]),
        ("flower", [1.0, 2.5, 4.25]),
        ("openfedllm", [1.0, 2.0, 3.0]),
    ):
        keys = {"variant": variant, "server-momentum": 0.5, "server-learning-rate": 1.0}
        strategy = build("strategies", "fedavgm", keys)
        state, seen = strategy.init({"global": {"w": torch.zeros(1)}}, 0), []
        for rnd in (1, 2, 3):
            state, _ = merge(
                strategy, state, rnd, [Update(0, 1, "global", {"delta": {"w": torch.ones(1)}}, {})]
            )
            seen.append(state.adapters["global"]["w"].item())
        assert seen == want, variant


def test_the_papers_adam_by_hand():
    """One round from D = 0.1: m = 0.01, v = 0.99e-6 + 0.01 * 0.01 = 1.0099e-4; x = 0.01 * 0.01 / (sqrt(v) + 0.001)."""
    strategy = build("strategies", "fedadam", {"server-learning-rate": 0.01})
    state = strategy.init({"global": {"w": torch.zeros(1, dtype=torch.float64)}}, 0)
    delta = {"w": torch.tensor([0.1], dtype=torch.float64)}
    state, _ = merge(strategy, state, 1, [Update(0, 7, "global", {"delta": delta}, {})])
    assert state.adapters["global"]["w"].item() == pytest.approx(1e-4 / (1.0099e-4**0.5 + 1e-3), rel=1e-12)


FLOWERS = {  # flwr's class, its options, and its own server learning rate
    "fedavg": (theirs.FedAvg, {}, 1.0),
    "fedavgm": (theirs.FedAvgM, {"server_momentum": 0.9}, 1.0),
    "fedadagrad": (theirs.FedAdagrad, {}, 0.1),
    "fedyogi": (theirs.FedYogi, {}, 0.01),
    "fedadam": (theirs.FedAdam, {}, 0.1),
}


def flowers_rounds(strategy, updates_by_round) -> list[dict]:
    """flwr's own strategy on the same updates: x after each round, float64."""
    x, out = ArrayRecord({n: Array(t.numpy()) for n, t in X.items()}), []
    grid = Loopback(range(len(SIZES)), lambda node, message: None)
    for rnd, deltas in enumerate(updates_by_round, start=1):
        messages = list(strategy.configure_train(rnd, x, ConfigRecord(), grid))
        replies = []
        for node, delta in enumerate(deltas):
            arrays = {n: Array(x[n].numpy() + d.numpy()) for n, d in delta.items()}
            content = RecordDict(
                {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": SIZES[node]})}
            )
            replies.append(Message(content, reply_to=messages[node]))
        x, _ = strategy.aggregate_train(rnd, replies)
        out.append({n: torch.from_numpy(np.array(a.numpy())) for n, a in x.items()})
    return out


@pytest.mark.parametrize("name", FLOWERS)
def test_the_flower_variant_is_flwrs_own_strategy(name):
    cls, options, eta = FLOWERS[name]
    rng = torch.Generator().manual_seed(5)
    noise = lambda t: 0.01 * torch.randn(t.shape, generator=rng, dtype=t.dtype)  # noqa: E731
    rounds = [[{n: noise(t) for n, t in X.items()} for _ in SIZES] for _ in range(4)]
    want = flowers_rounds(cls(**options), rounds)
    strategy = build("strategies", name, {"variant": "flower", "server-learning-rate": eta})
    state = ServerState(0, 0, {"global": X})
    for rnd, deltas in enumerate(rounds, start=1):
        updates = [Update(c, SIZES[c], "global", {"delta": d}, {}) for c, d in enumerate(deltas)]
        state, _ = merge(strategy, state, rnd, updates)
        close(state.adapters["global"], want[rnd - 1], atol=1e-12)


@pytest.mark.parametrize("weighting", ["examples", "tokens", "uniform"])
def test_weightings(weighting):
    """examples 1:3, tokens 3:1, uniform 1:1 of the deltas 0 and 4."""
    strategy = build("strategies", "fedavg", {"weighting": weighting})
    state = strategy.init({"global": {"w": torch.zeros(1)}}, 0)
    updates = [
        Update(0, 1, "global", {"delta": {"w": torch.tensor([0.0])}}, {}, tokens=30),
        Update(1, 3, "global", {"delta": {"w": torch.tensor([4.0])}}, {}, tokens=10),
    ]
    state, _ = merge(strategy, state, 1, updates)
    assert state.adapters["global"]["w"].item() == {"examples": 3.0, "tokens": 1.0, "uniform": 2.0}[weighting]


def test_clipping_scales_a_large_delta_and_no_other():
    """Norms 5 and 1, limit 2.5: (0.5 * (3, 4) + (0, 1)) / 2."""
    strategy = build("strategies", "fedavg", {"clip-norm": 2.5})
    state = strategy.init({"global": {"w": torch.zeros(2)}}, 0)
    updates = [
        Update(0, 1, "global", {"delta": {"w": torch.tensor([3.0, 4.0])}}, {}),
        Update(1, 1, "global", {"delta": {"w": torch.tensor([0.0, 1.0])}}, {}),
    ]
    state, _ = merge(strategy, state, 1, updates)
    assert state.adapters["global"]["w"].tolist() == pytest.approx([0.75, 1.5])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "fedavg",
            {"variant": "openfedlm"},
            "variant must be one of paper | openfedllm | flower, got 'openfedlm'",
        ),
        ("fedavg", {"weighting": "rows"}, "weighting must be one of"),
        ("fedavg", {"server-learning-rate": -1.0}, "must not be negative"),
        ("fedavgm", {"server-momentum": 1.0}, r"server-momentum must be in \[0, 1\), got 1.0"),
        ("fedadagrad", {"tau": 0.0}, "tau must be above 0"),
        ("fedyogi", {"beta-2": 1.5}, r"beta-2 must be in \[0, 1\)"),
    ],
)
def test_bad_values_are_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build("strategies", name, options)
