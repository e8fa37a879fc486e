"""A site on the real toy model: what it answers, what it keeps, what it refuses."""

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch

from client_app.node import Node
from client_app.private_memory import Memory
from client_app.site import Site
from core.config import parse
from core.errors import BaseMismatch, ConfigError, DataError, MemoryMissing
from core.tree import add, scale
from core.types import HelloRequest, Order
from strategies.base import Strategy
from strategies.clients.control_variates import scaffold_rule
from strategies.clients.rule import ClientRule
from strategies.fedavg import FedAvg
from tasks.forward.setup import loads
from tasks.model.adapter import initial_adapter
from tasks.training import engine
from tests.orders import with_fields

SMALL = {"data.rows-per-client": 12, "data.eval-rows-per-client": 6, "train.local-steps": 2}


@pytest.fixture
def site(tmp_path):
    def make(client: int = 0, clients: int = 3, **keys):
        flat = {k.replace("__", ".").replace("_", "-"): v for k, v in keys.items()}
        return Site(
            parse({**SMALL, **flat}), Node(client, clients, state_dir=str(tmp_path / f"home-{client}"))
        )

    return make


def order(site: Site, tree=None, *, rnd: int = 1, recall: int = 0, **fields) -> Order:
    base = site.base()
    tree = tree or initial_adapter(base, 42)
    common = {"run": "r", "base": base.fingerprint, "round": rnd}
    return with_fields(Order(site.node.client, {"global": tree}, recall=recall), **common, **fields)


def test_hello_tells_counts_and_fingerprints_and_no_row(site):
    said = site(1).hello(HelloRequest("r"))
    assert said["client"] == 1
    assert said["examples"] == 12
    texts = [v for row in site(1).rows().train for v in row.values() if isinstance(v, str)]
    assert texts
    assert not [t for t in texts if t in str(said)]


def test_names_come_from_the_data_in_a_simulation_only(tmp_path):
    """Of 3 owners 2 are clients. A server that says "simulation" of its own accord gets no name of a worker."""
    rows = tmp_path / "rows.jsonl"
    owners = ["w-ada", "w-ada", "w-ada", "w-bob", "w-bob", "w-cyd"]
    row = {"chosen": "good", "rejected": "bad"}
    lines = [json.dumps({**row, "prompt": f"p{n}", "client_id": owner}) for n, owner in enumerate(owners)]
    rows.write_text("\n".join(lines))
    config = parse({"data.source": "jsonl", "data.path": str(rows)})
    numbers = {"partition-id": 0, "num-partitions": 2}
    smaller = {"owners": 1, "rows": 1}

    def hello(simulation: bool, **facts) -> dict:
        said = Site(config, Node.read({**numbers, **facts})).hello(HelloRequest("r", simulation=simulation))
        return {key: said[key] for key in ("name", "left_out") if key in said}

    named = {"name": "w-ada", "left_out": {"smaller": {**smaller, "names": ["w-cyd"]}}}
    assert hello(True) == named
    assert hello(False) == {"left_out": {"smaller": smaller}}
    # as `accord site` and `accord start` give a site's facts, with a name of the provisioning and without one
    for name in ("", "north"):
        said = hello(True, **{"state-dir": str(tmp_path), "data-path": "", "site-name": name})
        assert said == {**({"name": name} if name else {}), "left_out": {"smaller": smaller}}
    own = hello(True, **{"data-path": str(rows), "site-name": "north"})
    assert own == {"name": "north"}


def test_another_base_is_refused(site):
    with pytest.raises(BaseMismatch, match="client 0 has a different base model"):
        site().hello(HelloRequest("r", "0" * 32))


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


def test_evaluation_scores_heldout_rows_and_sends_no_tree(site):
    update = site().evaluate(order(site()))
    assert update.examples == 6
    assert update.trees == {}
    assert 0 <= update.metrics["logps/accuracies"] <= 1
    assert "rewards/accuracies" not in update.metrics, "the start is the reference"


def test_tasks_on_one_disk_read_the_same_rows_their_own_way(site, tmp_path):
    """What one task has left in the cache is not what another reads: a disk of its own gives the same numbers."""
    told = {}
    for name in ("dpo", "selector", "reward"):
        shared = site(task__name=name, train__max_length=512)
        alone = Site(shared.config, Node(0, 3, state_dir=str(tmp_path / name)))
        told[name], want = (one.evaluate(order(one)).metrics for one in (shared, alone))
        assert told[name] == want
    assert ["order_consistency" in told[name] for name in told] == [False, True, False]
    assert {"accuracy", "loss", "ece", "length/accuracies"} <= told["selector"].keys() & told["reward"].keys()


def test_a_capped_evaluation_scores_fewer_rows(site):
    capped = site(eval__max_rows=2)
    assert capped.evaluate(order(capped)).examples == 2


def test_what_local_learns_stays_at_the_site_and_is_recalled(site):
    alone = site(strategy__name="local")
    first = alone.train(order(alone))
    assert first.kept
    assert first.trees["delta"] == {}
    second = alone.train(order(alone, rnd=2, recall=1))
    assert second.metrics["rewards/margins"] != first.metrics["rewards/margins"]
    with pytest.raises(MemoryMissing, match="client 0 has no memory of round 9"):
        alone.train(order(alone, rnd=3, recall=9))


def test_centralized_training_sees_every_row(site):
    one = site(strategy__name="centralized")
    update = one.train(order(one, rows="all", **{"steps-factor": 3}))
    assert update.examples == 36


@dataclass
class Corrected(FedAvg):
    def client_rule(self, rule: ClientRule) -> ClientRule:
        return scaffold_rule(
            "paper", "gradients", ClientRule(trains=lambda name, rnd: ".lora_A." not in name)
        )


class Bent(Site):
    """A site whose strategy changes the local steps, and lets B alone train."""

    @property
    def strategy(self) -> Strategy:
        return Corrected()


def test_a_control_stays_at_the_site_and_its_change_travels(site):
    """Kept and recalled, c_k goes into the next round: same order, other memory, other result."""
    one = site()
    bent = Bent(one.config, one.node)
    x = initial_adapter(one.base(), 42)
    x = {n: t + 0.05 for n, t in x.items()}
    c = {n: torch.zeros_like(t) for n, t in x.items()}
    first = bent.train(replace(order(one, x), trees={"global": x, "control": c}))
    assert first.kept
    assert {n for n, t in first.trees["delta"].items() if t.any()} == first.trees["control"].keys()
    assert all(".lora_B." in n and t.any() for n, t in first.trees["control"].items())
    again = bent.train(replace(order(one, x, rnd=2, recall=1), trees={"global": x, "control": c}))
    fresh = bent.train(replace(order(one, x, rnd=2), trees={"global": x, "control": c}))
    assert any(not again.trees["delta"][n].equal(t) for n, t in fresh.trees["delta"].items())


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


def test_moments_stay_at_the_site_and_a_round_is_repeated_to_the_byte(site):
    """Recalled at the round the server names, also after a later round that never counted; nothing of it is sent."""
    one = site(train__optimizer_state="keep")
    x = initial_adapter(one.base(), 42)
    first = one.train(order(one, x))
    assert first.kept
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
    assert not afresh.kept
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


def test_a_file_without_rows_is_refused(site, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    config = parse({"data.source": "jsonl"})
    empty = Site(config, Node(0, 1, data_path=str(tmp_path / "empty.jsonl"), state_dir=str(tmp_path)))
    with pytest.raises(DataError, match=r"empty\.jsonl holds no row"):
        empty.hello(HelloRequest("r"))


def test_an_edited_file_is_read_again(site, tmp_path):
    path = tmp_path / "rows.jsonl"
    row = '{"prompt": "question %d", "chosen": "yes", "rejected": "no"}\n'
    path.write_text("".join(row % i for i in range(8)))
    here = Site(parse({"data.source": "jsonl"}), Node(0, 1, data_path=str(path), state_dir=str(tmp_path)))
    before = here.hello(HelloRequest("r"))
    path.write_text("".join(row % i for i in range(12)))
    after = here.hello(HelloRequest("r"))
    assert (before["examples"], after["examples"]) == (6, 9)
    assert before["data"] != after["data"]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({}, "a SuperNode needs --node-config"),
        (
            {"partition-id": 3, "num-partitions": 3},
            r"partition-id .* num-partitions - 1 = 2, got 3",
        ),
        ({"partition-id": "x", "num-partitions": 3}, "a SuperNode needs --node-config"),
    ],
)
def test_a_node_must_say_who_it_is(node, message):
    with pytest.raises(ConfigError, match=message):
        Node.read(node)


def test_an_update_counts_rows_and_completion_tokens(site):
    here = site(1)
    update = here.train(order(here))
    rows = engine.encode_training_rows(
        here.base(), here.task, here.rows().train, here.config, here.cache
    ).usable
    assert update.examples == len(rows) == 12
    assert update.tokens == sum(len(tokens) for row in rows for tokens in row.completions) > 12


def test_the_truth_of_its_own_answers_is_measured_before_and_after_a_run(site):
    told = [site().evaluate(order(site(), rnd=rnd)).metrics for rnd in (0, 1, 12)]
    assert [{name for name in m if name.startswith("truth/")} for m in told] == [
        {"truth/valid", "truth/right", "truth/utility"}, set(), {"truth/valid", "truth/right", "truth/utility"},
    ]  # fmt: skip
    dealt = site(data__partitioner="iid")
    assert "truth/utility" not in dealt.evaluate(order(dealt, rnd=0)).metrics
    judge = site(task__name="selector", train__max_length=512)
    assert "truth/valid" not in judge.evaluate(order(judge, rnd=0)).metrics
