"""Every task and strategy behind an open policy: what they declare passes, and nothing else leaves."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from cli.site.policy.ledger import Ledger
from cli.site.policy.order import admit_order
from cli.site.policy.release import release
from cli.site.policy.rules import OPEN, Policy
from client_app.declarations import declared_options
from core import wire
from core.config import defaults, parse
from core.errors import ConfigError, PolicyRefused
from core.plugins import names
from core.sections import Config, may_change
from core.types import Client, Order, Update
from tasks.base import Task
from tasks.model.adapter import initial_adapter
from tests.cli.site.policy.guarded import guarded
from tests.orders import with_fields

OPENED = Policy(**OPEN)
CLIENTS = [Client(c, 24) for c in range(3)]
# strategies that only one task can be combined with
TASK_OF = {"fedpdpo": "pdpo"}
KEYS = {
    "train.local-steps": 1,
    "train.max-length": 512,
    "data.rows-per-client": 24,
    "data.eval-rows-per-client": 6,
}
COMBINATIONS = [
    *((task, "fedavg") for task in names("tasks")),
    *((TASK_OF.get(strategy, "dpo"), strategy) for strategy in names("strategies") if strategy != "fedavg"),
    ("selector", "fedbiscuit"),
]


def configured(task: str, strategy: str) -> Config:
    more = {"strategy.race": 2.0} if strategy == "fedbiscuit" else {}
    if "finish-steps" in dict(parse({"task.name": task, "strategy.name": strategy}).strategy_choice.options):
        more["strategy.finish-steps"] = 1
    return parse({**KEYS, **more, "task.name": task, "strategy.name": strategy})


@pytest.mark.parametrize(("task", "strategy"), COMBINATIONS)
def test_orders_and_answers_of_every_plugin_pass_an_open_policy(
    tmp_path: Path, task: str, strategy: str
) -> None:
    """In the first round, the first grouping and the last round: all that the plugins ask and report is declared."""
    config = configured(task, strategy)
    guard = replace(guarded(tmp_path, OPENED), site=replace(guarded(tmp_path, OPENED).site, config=config))
    base, built = guard.site.base(), config.build_strategy()
    chosen: Task = config.task_choice.build()
    state = built.init({"global": initial_adapter(base, 42)}, 42)
    rounds, last = config.run.num_server_rounds, getattr(built, "warmup_end", 1)
    state = replace(
        state, rounds=rounds, votes=chosen.reads == "choices", clients=3, examples={0: 24, 1: 24, 2: 24}
    )
    options = chosen.pooled_options(
        {"n_desirable": 9.0, "n_undesirable": 3.0, "kl_sum": 1.0, "kl_count": 2.0}
    )
    for kind, rnd, plan in (
        ("train", 1, built.plan_train),
        ("evaluate", last, built.plan_evaluate),
        ("evaluate", rounds, built.plan_evaluate),
    ):
        order = next(o for o in plan(state, rnd, CLIENTS) if o.client == 0)
        order = replace(
            order,
            run="r",
            base=base.fingerprint,
            round=rnd,
            clients=3,
            cohort=3,
            options={**options, **order.options},
        )
        if not all(declared_options(config)[name].own_rows for name in order.options):
            with pytest.raises(PolicyRefused, match="option 'rows'"):
                admit_order(OPENED, config, 0, kind, order)
            continue
        released, whole = (getattr(site, kind)(order) for site in (guard, guard.site))
        assert released.metrics.keys() == whole.metrics.keys()
        assert released.trees.keys() == whole.trees.keys()
        assert released.metrics


@pytest.mark.parametrize("option", ["nobody-declares-this", "z0"])
def test_an_option_that_the_run_does_not_declare_is_refused(option: str) -> None:
    order = with_fields(Order(0, {"global": {}}, run="r", round=1), **{option: 1.0})
    with pytest.raises(PolicyRefused, match=option):
        admit_order(OPENED, parse({"task.name": "dpo"}), 0, "train", order)


def test_a_metric_that_nothing_declares_stops_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is written, instead of being dropped at sites with a policy alone."""
    guard = guarded(tmp_path, OPENED, task__name="kto")
    monkeypatch.setattr(type(guard.site.task), "metrics", ("kl",))
    order = Order(0, {"global": initial_adapter(guard.site.base(), 42)}, run="r", round=1)
    with pytest.raises(ConfigError, match=r"'sum/kl_count'.*'kto'.*'fedavg'.*metrics"):
        guard.site.train(order)


@dataclass(frozen=True)
class Talkative(Update):
    """An update with a field that no site has heard of."""

    rows: str = "a row"


def test_a_field_that_is_not_named_never_leaves() -> None:
    tree = {"x.lora_A.weight": torch.ones(2, 3)}
    update = Talkative(0, 57, "global", {"delta": tree}, {"loss": 0.5})
    order = Order(0, {"global": tree}, run="r", round=1)
    assert not hasattr(release(OPENED, parse({}), "train", order, update, b"s"), "rows")
    assert "a row" not in str(wire.encode_update(update))


@pytest.mark.parametrize("key", sorted(set(defaults()) - {"run.resume"}))
def test_a_ledger_pins_exactly_the_keys_that_a_resumed_run_may_not_change(tmp_path: Path, key: str) -> None:
    ledger, config = Ledger(tmp_path), parse({})
    ledger.enter(OPENED, "r", "anna", config)
    other = replace(config, flat=tuple((k, f"{v}?" if k == key else v) for k, v in config.flat))
    if may_change(key):
        ledger.enter(OPENED, "r", "anna", other)
    else:
        with pytest.raises(PolicyRefused, match="another configuration"):
            ledger.enter(OPENED, "r", "anna", other)
