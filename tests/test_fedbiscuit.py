"""FedBiscuit in whole rounds on real sites with the toy model: grouping, message sizes, comparison rows."""

import json
import random
from pathlib import Path

import pytest
import torch

from cli.run.request import request
from client_app.node import Node
from client_app.site import Site
from core.config import parse
from core.sections import Config
from core.types import HelloRequest, Order
from server_app.report.headline import headline
from server_app.report.reading import read_run
from server_app.report.stats import by_key, purity
from tasks.forward.setup import load_base
from tasks.model.adapter import initial_adapter, set_adapter
from tasks.scoring.evaluate import choice_batch
from tasks.tokens.choice import margins, share_right
from tasks.training.engine import heldout_of
from tests.sites import federate
from tests.tiny import random_adapter

SMALL = {
    "strategy.name": "fedbiscuit",
    "strategy.selectors": 2,
    "strategy.warmup-rounds": 1,
    "data.rows-per-client": 16,
    "data.eval-rows-per-client": 6,
    "train.local-steps": 2,
    "lora.r": 4,
    "eval.every": 0,
    "run.num-server-rounds": 4,
}


def configured(path: Path, **more) -> Config:
    return parse({**SMALL, "run.dir": str(path / "runs"), **more})


@pytest.mark.slow
def test_a_run_resumed_between_groupings_equals_the_uninterrupted_one(tmp_path):
    more = {
        "strategy.ema": 0.5,
        "strategy.server-optimizer": "momentum",
        "strategy.server-lr-schedule": "cosine",
    }
    whole, records = federate(configured(tmp_path / "one", **more), tmp_path / "one", 4)
    half, _ = federate(configured(tmp_path / "two", **more), tmp_path / "two", 3)
    _, last = federate(configured(tmp_path / "two", **more), tmp_path / "two", 4, half)
    read = [(f.checkpoints / "00004" / "tensors.safetensors").read_bytes() for f in (whole, half)]
    assert read[0] == read[1]
    assert last[-1]["eval"]["mean"] == records[-1]["eval"]["mean"]
    assert [r["route"] for r in records if "route" in r] == [*[records[2]["route"]] * 2, records[4]["route"]]
    assert not any(r["failed"] for r in records)


def test_a_round_sends_one_adapter_per_client_and_a_grouping_sends_all(tmp_path):
    """For three clients, 3 adapters down per round and 2 x 3 more after round 2; only losses come up for a grouping."""
    config = configured(tmp_path)
    _, records = federate(config, tmp_path, 3)
    base = load_base(config.model, config.lora)
    adapter_bytes = 4 * sum(t.numel() for t in initial_adapter(base, 0).values())
    facts = 24_000  # layouts, options and metrics in text, for three clients
    down, up = ([r[way] for r in records] for way in ("bytes_down", "bytes_up"))
    assert 3 * adapter_bytes < down[1] < 3 * adapter_bytes + facts
    assert 9 * adapter_bytes < down[2] < 9 * adapter_bytes + 3 * facts
    assert 6 * adapter_bytes < down[3] < 6 * adapter_bytes + 2 * facts, (
        "the last round is evaluated, each client with its own selector"
    )
    assert all(3 * adapter_bytes < u < 3 * adapter_bytes + facts for u in up[1:])
    assert "eval" not in records[1]
    assert {"loss/c0", "loss/c1"} <= records[2]["eval"]["clients"]["0"].keys()
    assert not {"loss/c0", "loss/c1"} & records[3]["eval"]["clients"]["0"].keys()


def site(path: Path, **more) -> Site:
    return Site(configured(path, **more), Node(0, 3, state_dir=str(path)))


@pytest.mark.parametrize("task", ["dpo", "kto", "sft"])
def test_prompts_of_comparison_rows_are_not_trained_on(task, tmp_path):
    here = site(tmp_path, **{"task.name": task})
    train, comparison = here.parts()
    assert comparison
    assert sorted(map(str, train + comparison)) == sorted(map(str, here.rows().train))
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in comparison}
    assert here.hello(HelloRequest("r"))["examples"] == len(train)
    assert here.parts() == (train, comparison)
    other = Site(parse({"strategy.name": "fedbis", "task.name": task}), here.node)
    assert other.parts() == (other.rows().train, [])


@pytest.mark.parametrize("prompts", [1, 2])
def test_comparison_rows_are_drawn_by_row_if_there_are_few_prompts(prompts, tmp_path):
    """With one or two prompts, holding out whole prompts would take all rows or half of them."""
    rows = [{"prompt": f"Which? {i % prompts}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(80)]
    private = tmp_path / "private.jsonl"
    private.write_text("".join(json.dumps(row) + "\n" for row in rows))
    here = Site(configured(tmp_path), Node(0, 3, data_path=str(private), state_dir=str(tmp_path)))
    train, comparison = here.parts()
    trained = 80 - (20 if prompts == 1 else 40)  # of two prompts one is held out
    assert len(train) + len(comparison) == trained
    assert len(comparison) == trained / 10
    assert not {row["chosen"] for row in train} & {row["chosen"] for row in comparison}


def test_the_number_of_comparison_rows_is_limited(tmp_path):
    many = site(tmp_path, **{"data.rows-per-client": 3000, "strategy.grouping-fraction": 0.5})
    _, comparison = many.parts()
    assert 100 < len(comparison) <= 250


@pytest.mark.parametrize("task", ["dpo", "kto", "sft"])
def test_the_comparison_is_the_tasks_loss_of_each_adapter(task, tmp_path):
    """The initial adapter has the loss of the base (dpo: ln 2); one trained on these rows has another."""
    here = site(tmp_path, **{"task.name": task, "train.local-steps": 20, "train.local-epochs": 0.0})
    base = here.base()
    common = {"run": "r", "base": base.fingerprint, "round": 1}
    common["options"] = here.task.pooled_options(here.hello(HelloRequest("r"))["row_counts"])
    start = {n: initial_adapter(base, 42, n) for n in ("c0", "c1")}
    assert any(not t.equal(start["c1"][n]) for n, t in start["c0"].items())
    delta = here.train(Order(0, {"c1": start["c1"]}, "c1", **common)).trees["delta"]
    trained = {n: t + delta[n] for n, t in start["c1"].items()}
    comparison = Order(0, {"c0": start["c0"], "c1": trained}, "c0", compare=("c0", "c1"), **common)
    update = here.evaluate(comparison)
    assert update.metrics["loss/c0"] != update.metrics["loss/c1"]
    if task == "dpo":
        assert update.metrics["loss/c0"] == pytest.approx(0.693147, abs=1e-5)
    swapped = Order(0, {"c0": trained, "c1": start["c0"]}, "c1", compare=("c0", "c1"), **common)
    swapped_metrics = here.evaluate(swapped).metrics
    assert (swapped_metrics["loss/c0"], swapped_metrics["loss/c1"]) == (
        update.metrics["loss/c1"],
        update.metrics["loss/c0"],
    )
    scores = {n: v for n, v in update.metrics.items() if not n.startswith("loss/")}
    assert scores == {n: v for n, v in swapped_metrics.items() if not n.startswith("loss/")}, (
        "the order's own adapter is scored"
    )


def test_a_race_scores_less_and_places_the_same_adapter_first(tmp_path):
    """The initial adapter, a trained one, and a random one, which is eliminated after 16 of about 60 rows."""
    more = {"task.name": "sft", "data.rows-per-client": 240, "strategy.grouping-fraction": 0.25}
    here = site(tmp_path, **more, **{"train.local-steps": 10})
    base = here.base()
    common = {"run": "r", "base": base.fingerprint, "round": 1}
    start, noise = initial_adapter(base, 42), random_adapter(base, size=0.5)
    delta = here.train(Order(0, {"c0": start}, "c0", **common)).trees["delta"]
    trees = {"c0": start, "c1": {n: t + delta[n] for n, t in start.items()}, "c2": noise}
    full, raced, repeated = (
        here.evaluate(Order(0, trees, "c0", compare=("c0", "c1", "c2"), options=z, **common)).metrics
        for z in ({}, {"race": 3.0}, {"race": 3.0})
    )
    assert "race/scored" not in full
    assert 1 / 4 < raced["race/scored"] < 0.8
    assert raced == repeated
    assert raced["loss/c2"] > max(raced["loss/c0"], raced["loss/c1"])
    assert (raced["loss/c0"] < raced["loss/c1"]) == (full["loss/c0"] < full["loss/c1"])


def test_a_client_whose_comparison_rows_are_all_too_long_reports_no_losses(tmp_path):
    """It trains and is scored like other clients; for the grouping, the server treats it as missing."""
    rows = [
        {"prompt": f"Why {i}?", "chosen": "Because. " * (1 + 199 * (i % 2)), "rejected": "No."}
        for i in range(40)
    ]
    private = tmp_path / "private.jsonl"
    private.write_text("".join(json.dumps(row) + "\n" for row in rows))
    node = Node(0, 3, data_path=str(private), state_dir=str(tmp_path))
    more = {"train.on-long-row": "skip", "strategy.grouping-fraction": 0.05}
    drawn = (Site(configured(tmp_path, **more, **{"run.seed": seed}), node) for seed in range(99))
    here = next(h for h in drawn if all(len(row["chosen"]) > 99 for row in h.parts()[1]))
    assert here.parts()[1]
    base = here.base()
    start = initial_adapter(base, 42)
    common = {"run": "r", "base": base.fingerprint, "round": 1, "options": {"race": 3.0}}
    update = here.evaluate(Order(0, {"c0": start, "c1": start}, "c0", compare=("c0", "c1"), **common))
    assert update.examples > 0
    assert not [name for name in update.metrics if name.startswith(("loss/", "race/"))]


def test_a_selector_without_a_in_the_message_gets_its_own_initial_a(tmp_path):
    """ffa sends only B; a client adds the A that the server drew for this selector."""
    here = site(tmp_path, **{"lora.aggregation": "ffa"})
    strategy, base = here.strategy, here.base()
    state = strategy.init({"global": initial_adapter(base, 42)}, 42)
    for name in ("c0", "c1"):
        b = {n: t for n, t in state.adapters[name].items() if ".lora_B." in n}
        whole = here._complete(base, Order(0, {name: b}, name)).trees[name]
        assert all(t.equal(whole[n]) for n, t in state.adapters[name].items())


def test_groups_are_saved_and_read_as_json(tmp_path):
    folder, records = federate(configured(tmp_path), tmp_path, 2)
    lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert lines[2]["route"] == records[2]["route"]
    assert set(lines[2]["route"]) == {"0", "1", "2"}
    state = folder.load_state()
    assert state is not None
    assert state.facts["route"] == lines[2]["route"]
    assert all(torch.isfinite(torch.tensor(losses)).all() for losses in state.facts["losses"].values())


def toy(path: Path, *more: str) -> Config:
    """The settings of the preset, with fewer rows to score."""
    run_request = request(["fedbiscuit-toy.toml", "data.eval-rows-per-client=24", *more])
    return parse({**run_request.keys, "run.dir": str(path)})


def purities(records: list) -> list[float]:
    """The purity of the groups after each grouping; clients have three types in turn."""
    routes = [
        r["route"]
        for r in records
        if any("loss/c0" in m for m in r.get("eval", {"clients": {}})["clients"].values())
    ]
    return [purity(list(route.values()), [int(c) % 3 for c in route]) for route in routes]


@pytest.mark.slow
def test_three_types_are_found_and_served_better_than_by_one_selector(tmp_path):
    """The purity is at least 0.8 after two groupings.

    On its held-out pairs, each client's selector is at least 3 points better than FedBis's after as many rounds.
    """
    grouped, records = federate(toy(tmp_path), tmp_path / "own", 9, clients=12)
    assert purities(records)[1] >= 0.8
    single, _ = federate(toy(tmp_path, "strategy.name=fedbis"), tmp_path / "one", 9, clients=12)
    accuracies = [by_key(headline(read_run(folder.path)))["after"].value for folder in (grouped, single)]
    assert accuracies[0] >= accuracies[1] + 0.03


@pytest.mark.slow
def test_types_are_found_if_a_third_of_the_clients_miss_each_grouping(tmp_path):
    rng, missed = random.Random(0), {}

    def away(message) -> bool:
        if message.metadata.message_type != "evaluate":
            return False
        rnd = message.metadata.group_id
        missed.setdefault(rnd, {10 + c for c in rng.sample(range(12), 4)})
        return message.metadata.dst_node_id in missed[rnd]

    _, records = federate(toy(tmp_path), tmp_path, 9, clients=12, away=away)
    assert [r["round"] for r in records] == list(range(10)), "no stall"
    assert purities(records)[-1] >= 0.75


@pytest.mark.parametrize("task", [pytest.param("selector", marks=pytest.mark.slow), "reward"])
def test_a_vote_is_the_weighted_mean_of_the_selectors_log_odds(task, tmp_path):
    """With one weight zero, the vote has the accuracy of the other selector."""
    here = site(tmp_path, **{"task.name": task, "data.eval-rows-per-client": 12, "train.max-length": 1000})
    base = here.base()
    trees = {name: random_adapter(base, seed, 0.3) for seed, name in enumerate(("c0", "c1"))}

    def metrics_of_vote(vote: str) -> dict:
        common = {"run": "r", "base": base.fingerprint, "round": 1, "options": {"vote": vote}}
        return here.evaluate(Order(0, trees, "c1", **common)).metrics

    single = {vote: metrics_of_vote(vote)["vote/accuracy"] for vote in ("c0:3,c1:0", "c0:0,c1:3")}
    assert single["c0:0,c1:3"] == metrics_of_vote("c0:1,c1:1")["accuracy"], "the order's own adapter is c1"
    examples = heldout_of(base, here.task, here.rows().heldout, here.config, here.cache)
    odds = []
    for name in trees:
        set_adapter(base, trees[name])
        z = margins(choice_batch(base, examples))
        odds.append(z[:, 0] - z[:, 1])
    assert single["c0:3,c1:0"] == share_right(odds[0])
    assert metrics_of_vote("c0:2,c1:1")["vote/accuracy"] == share_right(
        2 * odds[0].double() + odds[1].double()
    )
