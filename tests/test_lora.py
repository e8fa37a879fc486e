"""lora.aggregation in whole rounds: real sites on the toy model, the real loop, messages in this process."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from client_app.node import Node
from client_app.site import Site
from core.config import parse
from core.factors import is_a, is_b, modules
from core.sections import Config
from core.types import Client
from server_app.run_folder import RunFolder
from tasks.forward.setup import load_base
from tasks.model.adapter import initial_adapter, set_adapter
from tasks.scoring.generate import TextGenerator
from tasks.tokens.encode import Encoder
from tests.sites import federate

SMALL = {
    "data.rows-per-client": 12,
    "data.eval-rows-per-client": 6,
    "train.local-steps": 2,
    "lora.r": 4,
}  # fmt: skip
WAYS = [
    ("separate", ""), ("ffa", ""), ("rolora", ""), ("fedsa", ""), ("fedex", ""), ("flora", ""), ("flexlora", ""),
    ("flora", "4,2,1"), ("flexlora", "4,2,1"),
]  # fmt: skip


def configured(method: str, ranks: str, path: Path, **more) -> Config:
    flat = {"lora.aggregation": method, "lora.client-ranks": ranks, "run.dir": str(path / "runs")}
    return parse({**SMALL, **flat, **more})


def tensors(folder: RunFolder) -> bytes:
    return (folder.checkpoints / "00003" / "tensors.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "ranks"), WAYS)
def test_a_resumed_run_equals_the_uninterrupted_one(method, ranks, tmp_path):
    """Stopped after two of three rounds; in between, the model gets the adapters of another run."""
    one = configured(method, ranks, tmp_path / "one")
    whole, records = federate(one, tmp_path / "one", 3)
    half, _ = federate(configured(method, ranks, tmp_path / "two"), tmp_path / "two", 2)
    federate(configured("flora", "2", tmp_path / "other"), tmp_path / "other", 1)
    _, last = federate(configured(method, ranks, tmp_path / "two"), tmp_path / "two", 3, half)
    assert tensors(half) == tensors(whole)
    assert last[-1]["eval"]["mean"] == records[-1]["eval"]["mean"]
    assert not any(r["failed"] for r in records)
    first, final = records[1]["train"]["mean"], records[3]["train"]["mean"]
    assert first["loss"] == pytest.approx(0.693, abs=0.03)
    assert final["norm/delta"] > 0


@pytest.mark.parametrize("method", ["fedex", "flora"])
def test_the_reference_stays_the_frozen_base(method, tmp_path):
    """At a client and at the server.

    At a client, a step with almost no learning rate has the loss of the merged policy against the base. It would be
    ln 2 if the merged factors were in both. At the server, a TextGenerator with `frozen` uses the unchanged base.
    """
    config = configured(method, "", tmp_path)
    folder, _ = federate(config, tmp_path, 2)
    state, frozen_config = (
        folder.load_state(),
        configured(method, "", tmp_path, **{"train.learning-rate": 1e-9}),
    )
    assert state is not None
    base = load_base(config.model, config.lora)
    (order,) = config.build_strategy().plan_train(state, 3, [Client(0, 12)])
    order = replace(order, run="r", base=base.fingerprint, round=3)
    report = Site(frozen_config, Node(0, 3, state_dir=str(tmp_path / "site-10"))).train(order)
    assert abs(report.metrics["loss"] - math.log(2)) > 1e-3
    assert report.metrics["rewards/margins"] > 0
    frozen, policy = (
        TextGenerator(base, Encoder(base.tokenizer, "auto", 64), frozen=f) for f in (True, False)
    )
    set_adapter(base, initial_adapter(base, 42))
    base_logprobs = policy.logprob("question", ["yes", "no"])
    set_adapter(base, state.adapters["global"], state.memory["global.merged"])
    assert frozen.logprob("question", ["yes", "no"]) == base_logprobs
    assert policy.logprob("question", ["yes", "no"]) != base_logprobs


def test_messages_have_the_size_of_their_factors(tmp_path):
    """Bytes of a round: ffa and fedsa halve the tensors both ways, rolora only those of the updates."""
    costs = {}
    for method in ("separate", "ffa", "rolora", "fedsa"):
        config = configured(method, "", tmp_path / method, **{"eval.every": 0})
        _, records = federate(config, tmp_path / method, 2)
        costs[method] = records[1]["bytes_up"], records[1]["bytes_down"]
    base = load_base(config.model, config.lora)
    sizes = {n: 4 * t.numel() * 3 for n, t in initial_adapter(base, 0).items()}
    a, b = sum(v for n, v in sizes.items() if is_a(n)), sum(v for n, v in sizes.items() if is_b(n))
    up, down = costs["separate"]
    want = {"ffa": (a, a), "rolora": (a, 0), "fedsa": (b, b)}
    for method, (less_up, less_down) in want.items():
        assert up - costs[method][0] == pytest.approx(less_up, rel=0.1)
        assert down - costs[method][1] == pytest.approx(less_down, rel=0.1, abs=4000)


def test_under_fedsa_each_client_has_its_own_b(tmp_path):
    """The server's B never changes. Each site scores with its own B, so the scores change."""
    config = configured("fedsa", "", tmp_path)
    folder, records = federate(config, tmp_path, 2)
    state = folder.load_state()
    assert state is not None
    assert not any(b.any() for b, _ in modules(state.adapters["global"]).values())
    assert records[2]["eval"]["mean"]["kl"] > 0
