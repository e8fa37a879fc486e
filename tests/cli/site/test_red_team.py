"""A hostile server asks for what a site's policy does not allow.

Every attack is also made on a site without a policy: `open` says that it then gets an answer, so that it is the policy
that stops it; the others are stopped by Accord itself as well.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch

from core.config import parse
from core.tree import flat, norm
from core.types import Order
from tasks.forward.setup import load_base
from tests.cli.site.lab import KEYS, MARKER, POLICY, hello, order, refused, write_rows
from tests.orders import with_fields

Twist = Callable[[Order], Order]


@dataclass(frozen=True)
class Attack:
    name: str
    reason: str  # of the refusal
    keys: dict = field(default_factory=dict)
    twist: Twist = lambda order: order
    kind: str = "train"
    open: bool = True
    own_file: bool = True


def fields(**changes: object) -> Twist:
    return lambda o: with_fields(o, **changes)


def adapter(name: str) -> Twist:
    return lambda o: replace(o, trees={name: o.trees["global"]}, adapter=name)


def tensors(change: Callable[[torch.Tensor], torch.Tensor]) -> Twist:
    return lambda o: replace(o, trees={"global": {n: change(t) for n, t in o.trees["global"].items()}})


def large(o: Order) -> Order:
    return replace(o, trees={**o.trees, "more": {"x": torch.zeros(1 << 18)}})


FEW = "min-rows = 20"
SELECTORS = {"strategy.name": "fedbiscuit", "strategy.selectors": 2, "strategy.warmup-rounds": 1}
WORDS = {"lora.target-modules": "embed_tokens"}
KTOR = {"task.name": "kto", "data.allocation": "ktor"}
ATTACKS = [
    Attack("a batch of one row", FEW, {"train.local-steps": 1, "train.per-device-batch-size": 1}),
    Attack("a training set of few rows", FEW, {"data.eval-fraction": 0.9}),
    Attack("a score of one row", FEW, {"eval.max-rows": 1}, kind="evaluate"),
    Attack("a held-out set of few rows", FEW, {"data.eval-fraction": 0.05}, kind="evaluate"),
    Attack("a comparison on few rows", FEW, {**SELECTORS, "strategy.grouping-fraction": 0.02},
           fields(compare=("global",)), "evaluate"),
    Attack("a comparison of the fedavg kind", "compare with strategy.name", twist=fields(compare=("global",)),
           kind="evaluate"),
    Attack("a comparison of nothing", "compare names 'c9'", SELECTORS, fields(compare=("c9",)), "evaluate", open=False),
    Attack("a vote on answers", "vote with task.name", SELECTORS, fields(vote="global:1"), "evaluate", open=False),
    Attack("another task", "task.name = 'sft'", {"task.name": "sft"}),
    Attack("another strategy", "strategy.name = 'fedprox'", {"strategy.name": "fedprox"}),
    Attack("the advisor", "strategy.name = 'probe'", {"strategy.name": "probe"}),
    Attack("an adapter on the words", "lora.target-modules = 'embed_tokens'", WORDS, open=False),
    Attack("another base", "model.name = 'toy-judge'", {"model.name": "toy-judge"}, kind="evaluate"),
    Attack("a folder as base", "model.name = '/etc'", {"model.name": "/etc"}, open=False),
    Attack("a path of the site", "data.path = 'SECRET", {"data.path": "SECRET", "data.partitioner": "iid"},
           own_file=False),
    Attack("a data set of the server's", "data.source = 'hub'", {"data.source": "hub", "data.dataset": "json"}),
    Attack("a place to write to", "client.state-dir = 'SECRET", {"client.state-dir": "SECRET"}),
    Attack("rows of everybody", "train with the option 'rows'", twist=fields(rows="all", steps_factor=3), open=False),
    Attack("rows dealt anew", "task.name = 'kto'", KTOR, open=False),
    Attack("a run of endless rounds", "num-server-rounds = 1000000", {"run.num-server-rounds": 10**6}),
    Attack("a round beyond the last", "train in round 4; expected 1 to 3", twist=fields(round=4)),
    Attack("steps without end", "passes over the rows", {"train.total-epochs": 30.0}, fields(clients=10**5),
           open=False),
    Attack("an option that nothing declares", "train with the option 'dump'", twist=fields(dump="rows")),
    Attack("an option of the evaluation", "train with the option 'finish-steps'", twist=fields(finish_steps=3)),
    Attack("a number that is none", "race = nan", SELECTORS, fields(compare=("global",), race=float("nan")), "evaluate",
           open=False),
    Attack("a run named by a path", "run = '../../x'", twist=fields(run="../../x"), open=False),
    Attack("an adapter named by a path", "a tree named '../x'", twist=adapter("../x")),
    Attack("an adapter named by a log line", r"a tree named 'x\\nE", twist=adapter("x\nERROR forged")),
    Attack("a memory before the first", "recall = -1 in round 1", twist=lambda o: replace(o, recall=-1), open=False),
    Attack("a memory of the future", "recall = 1 in round 1", twist=lambda o: replace(o, recall=1), open=False),
    Attack("an order for another client", "client 2 .* client 0", twist=lambda o: replace(o, client=2)),
    Attack("numbers that are none", "global holds NaN or Inf", twist=tensors(lambda t: t * float("nan"))),
    Attack("an order that is too large", "an order of .* bytes; .* max-order-bytes = 1048576", twist=large),
    Attack("the length of rows", "DataError; see this site", {"train.on-long-row": "error", "train.max-length": 8},
           open=False),
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name.replace(" ", "-"))
def test_what_the_policy_does_not_allow_is_refused(lab, tmp_path, attack):
    secret = tmp_path / "secret.jsonl"
    write_rows(secret)
    keys = {**KEYS, **attack.keys}
    keys = {k: v.replace("SECRET", str(secret)) if isinstance(v, str) else v for k, v in keys.items()}
    model = parse({"model.name": "toy-judge" if attack.name == "another base" else "toy"}).model
    asked = attack.twist(order(base=load_base(model, parse({}).lora)))
    site, free = (
        lab(name, policy=p, own_file=attack.own_file) for name, p in (("site", POLICY), ("free", None))
    )
    kind, reason = site.order(asked, attack.kind, keys)["failure"]
    assert kind in ("PolicyRefused", "SiteError")
    path = re.escape(str(secret)[:40])  # refusals shorten what is long
    assert re.search(attack.reason.replace("SECRET", path), reason), reason
    assert "\n" not in reason
    assert not site.touched
    if attack.open:
        assert not refused(free.order(asked, attack.kind, keys)), "it is not the policy that stops this"


def test_an_honest_run_is_answered(lab):
    site = lab()
    assert site.send("hello", hello())["examples"] == 30
    assert site.order(order())["examples"] == 30
    assert 0 < norm(site.update().trees["delta"]) <= 0.01 * (1 + 1e-5)
    assert site.order(order(), "evaluate")["metrics"].keys() >= {"logps/accuracies"}


def test_updates_are_clipped_whatever_the_server_asks(lab):
    keys = {**KEYS, "train.learning-rate": 1.0, "train.max-grad-norm": 0.0}
    site, free = lab(), lab("free", policy=None)
    for one in (site, free):
        one.order(order(), keys=keys)
    assert norm(site.update().trees["delta"]) <= 0.01 * (1 + 1e-5)
    assert norm(free.update().trees["delta"]) > 1


def test_the_hello_says_counts_and_a_base(lab):
    site = lab()
    assert refused(site.send("hello", hello(everything=True))).startswith("a message HelloRequest")
    said = site.send("hello", hello())
    assert said.keys() == {
        "client", "clients", "base", "examples", "row_counts", "data", "skipped", "truth", "loads",
    }  # fmt: skip
    assert (said["examples"], said["data"], said["skipped"], said["truth"]) == (30, "", {}, None)
    free = lab("free", policy=None).send("hello", hello())
    assert free["data"], "without a policy: a digest of its rows"


def test_a_bad_row_is_told_by_its_kind_of_error(lab):
    site, free = lab(), lab("free", policy=None)
    for one in (site, free):
        bad = {f"{MARKER} a patient's words": 1, "prompt": MARKER}
        (one.path / "rows.jsonl").write_text(
            f"{bad}\n".replace('"', "'") + '{"prompt": "' + MARKER + '", "b c": 1}\n'
        )
    assert site.order(order())["failure"] == [
        "SiteError",
        "train failed with DataError; see this site's log",
    ]
    said = refused(free.order(order()))
    assert "malformed JSON" in said
    assert "the site's file line 1" in said


# --- how often -------------------------------------------------------------------------


def test_rounds_do_not_go_on_for_ever(lab):
    """Every order is a little different; the site is started anew each time, and forgets nothing."""
    site, free = lab(), lab("free", policy=None)
    said = [refused(site.order(order(shift=i * 1e-3, rnd=1 + i % 3))) for i in range(5)]
    assert said[:3] == ["", "", ""]
    assert all("all 3 answers to train" in reason for reason in said[3:])
    assert not any(refused(free.order(order(shift=i * 1e-3))) for i in range(5))


def test_neither_do_runs(lab):
    site = lab()
    said = [refused(site.order(order(run=f"r{i}"))) for i in range(4)]
    assert said[:2] == ["", ""]
    assert all("this site allows 2" in reason for reason in said[2:])


def test_all_runs_have_one_budget(lab):
    site = lab()
    said = [refused(site.order(order(run=f"r{i % 2}", shift=i * 1e-3))) for i in range(6)]
    assert [bool(reason) for reason in said] == [False] * 4 + [True] * 2
    assert "all 4 answers to train" in said[4]


def test_scores_do_not_go_on_for_ever(lab):
    site = lab()
    said = [refused(site.order(order(shift=i * 1e-3, rnd=i % 4), "evaluate")) for i in range(6)]
    assert [bool(reason) for reason in said] == [False] * 4 + [True] * 2


def test_a_run_cannot_ask_the_same_of_other_rows(lab):
    """Other rows are held out under another seed: differences would tell rows apart."""
    site = lab()
    assert not refused(site.order(order()))
    for keys in ({"run.seed": 7}, {"eval.max-rows": 21}, {"data.eval-fraction": 0.41}):
        assert "another configuration" in refused(site.order(order(), keys={**KEYS, **keys}))


def test_noise_cannot_be_averaged_away(lab):
    """The same order again and again: the same bytes, and one round of the budget."""
    site, sent = lab(policy=replace(POLICY, updates="noised", noise_multiplier=1.0, max_total_rounds=1)), []
    for _ in range(3):
        site.order(order())
        sent.append(flat(site.update().trees["delta"]))
    assert all(torch.equal(one, sent[0]) for one in sent)
    assert float(sent[0].norm()) > 0.5, "noise, not the 0.01 that the update is clipped to"


def test_the_memory_of_another_run_is_not_recalled(lab):
    """SCAFFOLD's control is private, and its change travels: who names a run gets that run's."""
    keys = {**KEYS, "strategy.name": "scaffold"}

    def asked(rnd: int, recall: int) -> Order:
        one = order(rnd=rnd, recall=recall)
        control = {n: torch.zeros_like(t) for n, t in one.trees["global"].items()}
        return replace(one, trees={**one.trees, "control": control})

    site, free = lab(policy=replace(POLICY, strategies=("scaffold",))), lab("free", policy=None)
    for one in (site, free):
        assert not refused(one.order(asked(1, 0), keys=keys, owner="anna"))
    assert "another configuration or owner" in refused(site.order(asked(2, 1), keys=keys, owner="eve"))
    assert not refused(free.order(asked(2, 1), keys=keys, owner="eve"))
    assert not refused(site.order(asked(2, 1), keys=keys, owner="anna"))


def test_a_name_that_a_server_makes_up_stays_on_one_line_of_the_log(lab, caplog):
    kind, reason = lab(policy=None).order(order(), keys={**KEYS, "task.name": "x\nERROR forged"})["failure"]
    assert kind == "ConfigError"
    assert "\n" not in reason
    assert not [record for record in caplog.records if "\n" in record.getMessage()]


def test_finishing_on_few_rows_is_refused(lab):
    """One step over one row, and then its scores."""
    keys = {**KEYS, "train.per-device-batch-size": 1}
    reason = refused(lab().order(with_fields(order(), finish_steps=1), "evaluate", keys))
    assert "min-rows = 20" in reason
