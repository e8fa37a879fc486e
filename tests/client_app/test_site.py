"""A site on the real toy model: its hello, its scores, its data, and what it refuses."""

import json

import pytest

from client_app.node import Node
from client_app.site import Site
from core.config import parse
from core.errors import BaseMismatch, ConfigError, DataError
from core.types import HelloRequest
from tasks.training import engine
from tests.client_app.orders import order


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
