"""FedPDPO, Ditto and finishing steps in whole rounds on real sites: messages, private memory, exported models."""

import struct
from dataclasses import replace

import pytest
import torch
from flwr.app import Message
from flwr.common.serde import message_to_proto

from client_app import personal_model
from client_app.node import Node
from client_app.private_memory import Memory
from client_app.site import Site
from core import wire
from core.factors import is_a, is_b, is_private
from core.types import HelloRequest
from tasks.forward.setup import load_base
from tasks.model.adapter import set_adapter
from tasks.training import engine
from tests.personal_sites import PDPO, configured, here, order, own, scored
from tests.sites import federate

MARK = struct.pack("<f", 1234.5678)  # the bytes of a number that occurs nowhere else


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        PDPO,
        {**PDPO, "task.order": "alternating", "train.optimizer-state": "keep", "task.mix": "gate"},
        {**PDPO, "lora.aggregation": "fedex", "task.head-rank": 0, "task.objective": "margin"},
        {"strategy.name": "ditto"},
        {"strategy.finish-steps": 3},
    ],
    ids=["joint", "alternating", "fedex", "ditto", "finish"],
)
def test_a_resumed_run_equals_the_uninterrupted_one(more, tmp_path):
    """In between, the model gets the private parts of another run. Memory and exports are compared as well."""
    one, two = configured(tmp_path / "one", **more), configured(tmp_path / "two", **more)
    whole, records = federate(one, tmp_path / "one", 3)
    half, _ = federate(two, tmp_path / "two", 2)
    federate(configured(tmp_path / "other", **{**PDPO, "run.seed": 7}), tmp_path / "other", 1)
    _, last = federate(two, tmp_path / "two", 3, half)
    read = [(f.checkpoints / "00003" / "tensors.safetensors").read_bytes() for f in (whole, half)]
    assert read[0] == read[1]
    assert last[-1]["eval"]["mean"] == records[-1]["eval"]["mean"]
    assert not any(r["failed"] for r in records)
    saved = []
    for home in (tmp_path / "one", tmp_path / "two"):
        files = [f for kind in ("memory", "personal") for f in home.glob(f"site-*/{kind}/**/*.safetensors")]
        saved.append({str(f.relative_to(home)): f.read_bytes() for f in files})
    assert saved[0] == saved[1]
    assert sum("/personal/" in name for name in saved[0]) == 6, (
        "an adapter and private parts of three clients"
    )


def test_no_byte_of_a_private_tensor_is_in_a_message(tmp_path):
    """A number planted in every private tensor is in the memory, but in no message as Flower sends it.

    As a control, the number is found in a message if it is planted in the shared adapter.
    """
    site = here(tmp_path, **{"train.learning-rate": 1e-12})
    site.train(order(site))
    memory = Memory(site.state_dir, "r", 0)
    saved = memory.load(1)
    memory.save(
        1, {**saved, "own": {n: torch.full_like(t, 1234.5678) for n, t in saved["own"].items()}}, recalled=0
    )
    request = order(site, rnd=2, recall=1)
    sent = []
    for record in (
        wire.encode_update(site.train(request)),
        wire.encode_update(site.evaluate(replace(request, round=3))),
        wire.encode_facts(site.hello(HelloRequest("r"))),
        wire.encode_order(request),
    ):
        message = Message(record, dst_node_id=1, message_type="train")
        sent.append(message_to_proto(message).SerializeToString())
    folder = site.state_dir / "memory" / "r" / "0" / "00002"
    assert (folder / "tensors.safetensors").read_bytes().count(MARK) > 1000
    assert all(MARK not in bytes_ and b"private." not in bytes_ for bytes_ in sent)
    marked = {n: torch.full_like(t, 1234.5678) for n, t in request.trees["global"].items()}
    message = Message(
        wire.encode_order(replace(request, trees={"global": marked})), dst_node_id=1, message_type="train"
    )
    assert MARK in message_to_proto(message).SerializeToString()


def test_messages_have_fedavgs_size_and_the_server_holds_only_lora(tmp_path):
    costs = {}
    for name, more in {"dpo": {}, "pdpo": PDPO}.items():
        folder, records = federate(configured(tmp_path / name, **more), tmp_path / name, 2)
        costs[name] = records[2]["bytes_up"] + records[2]["bytes_down"]
        state = folder.load_state()
        assert state is not None
        trees = {**state.adapters, **state.memory}
        assert not [n for tree in trees.values() for n in tree if is_private(n)]
    assert costs["pdpo"] == pytest.approx(costs["dpo"], abs=6000), "facts and metrics in text"


def test_each_client_is_scored_with_its_own_parts(tmp_path):
    """Scores use the memory of their round; explicit and combined accuracy appear after the first training."""
    folder, records = federate(configured(tmp_path, **PDPO), tmp_path, 3)
    first, last = records[0]["eval"]["mean"], records[3]["eval"]
    assert not [n for n in first if n.startswith(("explicit", "combined"))]
    names = {"logps/accuracies", "rewards/accuracies", "explicit/accuracies", "combined/accuracies"}
    assert names | {"combined/weight"} <= last["mean"].keys()
    state, base = folder.load_state(), None
    assert state is not None
    for client in range(3):
        site = Site(
            configured(tmp_path, **PDPO), Node(client, 3, state_dir=str(tmp_path / f"site-{client + 10}"))
        )
        base = site.base()
        tree = Memory(site.state_dir, "r", client).load(3)["own"]
        assert all(map(is_private, tree))
        set_adapter(base, {**state.adapters["global"], **tree})
        want = engine.evaluate(base, site.task, site.rows().heldout, site.config, site.cache)
        assert {n: last["clients"][str(client)][n] for n in want} == want


def test_a_client_that_joins_late_trains_its_private_parts_first(tmp_path):
    """It does ten additional steps, only once and only without a saved memory, and its adapter changes too."""
    site = here(tmp_path)
    orders = {rnd: order(site, rnd=rnd) for rnd in (1, 2)}
    moved = {n: t + 0.01 for n, t in orders[2].trees["global"].items()}
    norms = []
    for request in (orders[1], replace(orders[2], trees={"global": moved}), order(site, rnd=3, recall=2)):
        update = site.train(request)
        saved = own(tmp_path, request.round)
        norms.append(saved["private.reward.weight"].norm().item())
        assert any(t.any() for t in update.trees["delta"].values())
    steady = here(tmp_path / "steady", **{"strategy.personal-steps": 0})
    steady.train(replace(orders[2], trees={"global": moved}))
    assert norms[1] > 2 * own(tmp_path / "steady", 2)["private.reward.weight"].norm().item()
    assert norms[0] < norms[1]


def test_a_client_that_never_trained_is_scored_with_the_shared_adapter(tmp_path):
    """The scores equal those under dpo, because the private parts have their initial values."""
    adapter = {n: t + 0.02 for n, t in order(here(tmp_path)).trees["global"].items()}
    scores = []
    for site in (here(tmp_path), here(tmp_path, **{"task.name": "dpo", "strategy.name": "fedavg"})):
        scores.append(site.evaluate(replace(order(site), trees={"global": adapter})).metrics)
    assert scores[0] == scores[1]
    assert scores[0]["rewards/accuracies"] > 0


def test_finishing_steps_change_only_each_clients_own_model(tmp_path):
    """The server's adapter does not change. The last scores improve, and are those of the exported model."""
    plain, before = federate(configured(tmp_path / "plain"), tmp_path / "plain", 3)
    folder, records = federate(
        configured(tmp_path / "own", **{"strategy.finish-steps": 4}), tmp_path / "own", 3
    )
    read = [(f.checkpoints / "00003" / "tensors.safetensors").read_bytes() for f in (plain, folder)]
    assert read[0] == read[1]
    assert records[2]["eval"] == before[2]["eval"]
    assert records[3]["eval"]["mean"]["rewards/margins"] > before[3]["eval"]["mean"]["rewards/margins"]
    site = Site(configured(tmp_path), Node(0, 3, state_dir=str(tmp_path / "own" / "site-10")))
    place = personal_model.folder(site.state_dir, "r", 0)
    metrics = scored(place, site)
    assert metrics == {n: records[3]["eval"]["clients"]["0"][n] for n in metrics}


def test_ditto_trains_a_personal_adapter_in_addition_to_the_shared_one(tmp_path):
    """The shared adapter is FedAvg's to the byte. The personal one is scored; a larger lambda keeps it closer."""
    results = {}
    for name, more in {
        "fedavg": {},
        "weak": {"strategy.name": "ditto", "strategy.personal-lambda": 0.0},
        "strong": {"strategy.name": "ditto", "strategy.personal-lambda": 50.0},
    }.items():
        folder, records = federate(configured(tmp_path / name, **more), tmp_path / name, 3)
        results[name] = (
            (folder.checkpoints / "00003" / "tensors.safetensors").read_bytes(),
            records[3]["eval"],
        )
    assert len({bytes_ for bytes_, _ in results.values()}) == 1
    assert len({str(scores) for _, scores in results.values()}) == 3
    state = folder.load_state()
    assert state is not None

    def distance(name: str) -> float:
        personal = Memory(tmp_path / name / "site-10", "r", 0).load(3)["personal"]
        return sum((t - state.adapters["global"][n]).norm().item() for n, t in personal.items())

    assert distance("strong") < 0.7 * distance("weak")


def test_alternating_training_of_a_private_head_is_fedrep(tmp_path):
    more = {"task.parts": "head", "task.order": "alternating"}
    _, records = federate(configured(tmp_path, **{**PDPO, **more}), tmp_path, 2)
    saved = Memory(tmp_path / "site-10", "r", 0).load(2)["own"]
    assert saved.keys() == {"private.head.left", "private.head.right"}
    assert "rewards/accuracies" in records[2]["eval"]["mean"]
    assert "combined/accuracies" not in records[2]["eval"]["mean"]


def test_under_fedsa_a_is_sent_and_b_is_private(tmp_path):
    """B is saved together with the private parts."""
    more = {**PDPO, "lora.aggregation": "fedsa"}
    federate(configured(tmp_path, **more), tmp_path, 3)
    saved = Memory(tmp_path / "site-10", "r", 0).load(3)["own"]
    assert {is_b(n) or is_private(n) for n in saved} == {True}
    assert not any(map(is_a, saved))


@pytest.mark.parametrize("more", [{}, {"lora.aggregation": "fedex"}, {"task.parts": "reward"}])
def test_an_exported_model_scores_talks_and_ranks_as_it_did(more, tmp_path):
    """The model is loaded into a new base.

    fedex's merged factors are in the adapter's file, at another rank and so with other rounding.
    """
    config = configured(tmp_path, **{**PDPO, **more})
    _, records = federate(config, tmp_path, 3)
    site = Site(config, Node(1, 3, state_dir=str(tmp_path / "site-11")))
    place = personal_model.folder(site.state_dir, "r", 1)
    want = records[3]["eval"]["clients"]["1"]
    for name, value in scored(place, site).items():
        assert value == pytest.approx(want[name], rel=1e-3, abs=1e-4), name
    model = personal_model.load(config.model, place)
    beta, rows = dict(config.task_choice.options)["beta"], site.rows().heldout
    for row in rows[:2]:
        answers = (row["chosen"], row["rejected"])
        whole, implicit = (
            replace(model, factor=f).rewards(row["prompt"], answers) for f in (model.factor, 0.0)
        )
        trained = model.generator.logprob(row["prompt"], answers)
        frozen = replace(model.generator, frozen=True).logprob(row["prompt"], answers)
        assert implicit == pytest.approx(
            [beta * (a - b) for a, b in zip(trained, frozen, strict=True)], abs=1e-5
        )
        assert whole != implicit
    assert model.factor == pytest.approx(want["combined/lambda"], rel=1e-3)
    assert model.generator.generate([rows[0]["prompt"]])[0]
    assert load_base(config.model, config.lora).private_parts.tensors == {}, (
        "the server's base has no private parts"
    )
