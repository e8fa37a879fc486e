"""FedBiscuit: which client trains which selector, and what is asked of it."""

from collections import Counter
from dataclasses import replace

import pytest

from core.errors import ConfigError
from core.sections import LoraConfig
from core.types import Client, Order, ServerState, Update
from server_app.run_folder import RunFolder
from strategies.clients.rule import DEFAULT_RULE
from strategies.fedbiscuit import FedBiscuit
from tests.strategies.selectors import EVERYONE, GROUPED, LAYOUT, NAMES, begin
from tests.strategies.simulated_rounds import merge


def told(orders: list[Order], best: dict[int, int], silent: tuple[int, ...] = ()) -> list[Update]:
    """What clients answer to an evaluation: a low loss for the selector that is best for each."""
    out = []
    for order in orders:
        if order.client not in silent:
            losses = {f"loss/{n}": 0.5 if n == f"c{best[order.client]}" else 0.7 for n in order.compare}
            out.append(Update(order.client, 5, order.adapter, {}, {"acc": 0.5, **losses}))
    return out


def test_selectors_begin_apart():
    state = begin(FedBiscuit())
    a = [state.adapters[n]["l.lora_A.weight"] for n in NAMES]
    assert not a[0].equal(a[1])
    assert not a[1].equal(a[2])
    assert not any(x["l.lora_B.weight"].any() for x in state.adapters.values())


def test_a_warm_up_gives_each_selector_as_many_client_rounds():
    """Six rounds of 12 clients for three selectors: 24 each, one after another or side by side."""
    for warmup in ("sequential", "interleaved"):
        strategy = FedBiscuit(warmup=warmup)
        state, cohort = begin(strategy), EVERYONE[:11]
        orders = [strategy.plan_train(state, rnd, cohort) for rnd in range(1, GROUPED)]
        assert all(set(o.trees) == {o.adapter} for some in orders for o in some), "no other selector is sent"
        assert Counter(o.adapter for some in orders for o in some) == dict.fromkeys(NAMES, 22)
        inside = [len({o.adapter for o in some}) for some in orders]
        assert inside == ([1] * 6 if warmup == "sequential" else [3] * 6)
        again = [strategy.plan_train(state, rnd, cohort) for rnd in range(1, GROUPED)]
        assert [[o.adapter for o in some] for some in again] == [[o.adapter for o in some] for some in orders]


def regrouped(strategy: FedBiscuit, state: ServerState, rnd: int, best: dict[int, int], silent=()):
    orders = strategy.plan_evaluate(state, rnd, EVERYONE)
    return strategy.merge_evaluate(state, rnd, told(orders, best, silent))[0]


@pytest.mark.parametrize("how", ["exact", "greedy"])
def test_clients_train_the_selector_that_suits_them(how):
    strategy, best = FedBiscuit(grouping=how), {c: c % 3 for c in range(12)}
    state = regrouped(strategy, begin(strategy), GROUPED - 1, best)
    assert state.facts["route"] == {str(c): f"c{c % 3}" for c in range(12)}
    for orders in (
        strategy.plan_train(state, GROUPED, EVERYONE),
        strategy.plan_evaluate(state, GROUPED, EVERYONE),
    ):
        assert all(o.adapter == f"c{o.client % 3}" and set(o.trees) == {o.adapter} for o in orders)


def test_only_a_round_before_a_new_grouping_asks_for_the_losses():
    """Warm-up of 6 rounds, then every 2: after 6, 8, 10, however seldom the user evaluates."""
    strategy = FedBiscuit()
    assert [rnd for rnd in range(12) if strategy.must_evaluate(rnd)] == [6, 8, 10]
    state = regrouped(strategy, begin(strategy), 6, {c: c % 3 for c in range(12)})
    for rnd in range(12):
        orders = strategy.plan_evaluate(state, rnd, EVERYONE)
        due = rnd in (6, 8, 10)
        assert all((o.compare == ("c0", "c1", "c2")) == due for o in orders)
        assert all(set(o.trees) == (set(NAMES) if due else {o.adapter}) for o in orders)
        assert not any("race" in o.options for o in orders)
        raced = FedBiscuit(race=3.0).plan_evaluate(state, rnd, EVERYONE)
        assert [o.options.get("race") for o in raced] == [3.0 if due else None] * 12


@pytest.mark.parametrize("how", ["exact", "greedy"])
def test_a_third_missing_at_every_grouping_stalls_nothing(how):
    """Who is silent keeps group and losses, also when everybody's best selector has become another one."""
    strategy, state = FedBiscuit(grouping=how), begin(FedBiscuit())
    for i, rnd in enumerate((6, 8, 10)):
        best = {c: (c + i) % 3 for c in range(12)}
        silent = tuple(range(4 * i, 4 * i + 4))
        before = state
        state = regrouped(strategy, state, rnd, best, silent)
        for c in silent:
            assert state.facts["route"].get(str(c)) == before.facts.get("route", {}).get(str(c))
            assert state.facts["losses"].get(str(c)) == before.facts.get("losses", {}).get(str(c))
        orders = strategy.plan_train(state, rnd + 1, EVERYONE)
        assert len(orders) == 12
        if how == "exact":
            sizes = Counter(o.adapter for o in orders)
            assert max(sizes.values()) - min(sizes.values()) <= 1
        updates = [Update(o.client, 10, o.adapter, {"delta": LAYOUT}, {}) for o in orders]
        state, _ = merge(strategy, state, rnd + 1, updates)
    assert set(state.facts["route"]) == {str(c) for c in range(12)}


def test_nobody_answering_a_grouping_leaves_it_as_it_was():
    strategy = FedBiscuit()
    state = regrouped(strategy, begin(strategy), 6, {c: c % 3 for c in range(12)})
    assert regrouped(strategy, state, 8, {}, silent=tuple(range(12))) is state
    empty = regrouped(strategy, begin(strategy), 6, {}, silent=tuple(range(12)))
    sizes = Counter(o.adapter for o in strategy.plan_train(empty, GROUPED, EVERYONE))
    assert sizes == dict.fromkeys(NAMES, 4)


def test_a_client_never_seen_joins_the_smallest_group_and_stays():
    strategy = FedBiscuit()
    route = {"0": "c0", "1": "c0", "2": "c1", "3": "c2", "4": "c2"}
    state = begin(strategy, facts={"route": route})
    orders = strategy.plan_train(state, GROUPED, [Client(0, 10), Client(9, 10)])
    assert [o.adapter for o in orders] == ["c0", "c1"]
    state, _ = merge(strategy, state, GROUPED, [Update(9, 10, "c1", {"delta": LAYOUT}, {})])
    assert state.facts["route"] == {**route, "9": "c1"}


def test_losses_that_a_client_makes_up_do_not_stop_the_round():
    strategy = FedBiscuit()
    state = begin(strategy)
    strange = [float("nan"), float("inf"), "low", None]
    updates = []
    for order in strategy.plan_evaluate(state, 6, EVERYONE):
        loss = strange[order.client] if order.client < 4 else 0.5
        named = {} if loss is None else {"loss/c0": loss}
        updates.append(Update(order.client, 0, order.adapter, {}, {"loss/c1": 0.6, "loss/c2": 0.7, **named}))
    state, _ = strategy.merge_evaluate(state, 6, updates)
    assert state.facts["route"].keys() == {str(c) for c in range(12)} - {"2", "3"}
    assert state.facts["route"]["0"] != "c0"


def test_a_state_from_disk_gives_the_same_orders(tmp_path):
    """Eleven selectors, so that their names do not sort as they count."""
    (tmp_path / "run").mkdir()
    folder = RunFolder(tmp_path / "run")
    strategy = FedBiscuit(selectors=11, warmup_rounds=1, grouping="greedy", warmup="interleaved")
    state = regrouped(strategy, begin(strategy), 11, {c: c % 11 for c in range(12)})
    folder.commit(state, {"round": 0, "participants": [], "failed": {}})
    read = folder.load_state()
    assert read is not None
    for rnd in (3, 12, 13):
        for plan in (strategy.plan_train, strategy.plan_evaluate):
            ours, theirs = plan(state, rnd, EVERYONE), plan(read, rnd, EVERYONE)
            assert [(o.client, o.adapter, o.compare, dict(o.options)) for o in ours] == [
                (o.client, o.adapter, o.compare, dict(o.options)) for o in theirs
            ]
            assert all(
                t.equal(b.trees[n][k])
                for a, b in zip(ours, theirs, strict=True)
                for n, x in a.trees.items()
                for k, t in x.items()
            )
    again = [regrouped(strategy, s, 13, {c: (c + 1) % 11 for c in range(12)}).facts for s in (state, read)]
    assert again[0] == again[1]


def test_a_run_leaves_every_selector_and_the_largest_groups_first():
    strategy = FedBiscuit()
    state = begin(strategy, facts={"route": {"0": "c2", "1": "c2", "2": "c1"}})
    assert list(strategy.final(state)) == ["c2", "c1", "c0"]


def test_rows_are_set_aside_and_what_stays_at_a_client_is_refused():
    assert FedBiscuit(grouping_fraction=0.2).local_rule() == replace(DEFAULT_RULE, comparison_share=0.2)
    for method in ("fedsa", "fedex", "flora", "flexlora"):
        with pytest.raises(ConfigError, match="several selectors"):
            FedBiscuit().with_lora(LoraConfig(aggregation=method))
    half = FedBiscuit().with_lora(LoraConfig(aggregation="ffa", r=2))
    (order,) = half.plan_train(begin(FedBiscuit()), 1, EVERYONE[:1])
    assert set(order.trees["c0"]) == {"l.lora_B.weight"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selectors": 1}, "strategy.selectors must be at least 2, got 1"),
        ({"warmup_rounds": 0}, "strategy.warmup-rounds must be at least 1, got 0"),
        ({"grouping": "best"}, "strategy.grouping must be one of exact . greedy, got 'best'"),
        ({"server_rule": "eq4"}, "strategy.server-rule must be one of auto . eq8 . ma . cluster-norm"),
        ({"race": -1.0}, "strategy.race must be at least 0, got -1.0"),
        ({"grouping_fraction": 1.0}, r"strategy.grouping-fraction must be in \(0, 1\)"),
        ({"grouping": "greedy", "hysteresis": 0.5}, "need strategy.grouping = 'exact'"),
        ({"variant": "openfedllm"}, "fedbiscuit has paper"),
    ],
)
def test_bad_values_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        FedBiscuit(**options)


def test_selectors_vote_when_clients_are_grouped_and_at_the_end_where_they_can():
    """Round 6 groups, 12 is the last: U adapters; 7 and 8 ask for one each. The weights are the sizes of the groups."""
    strategy = FedBiscuit()
    state = begin(strategy, votes=True)
    for rnd, wanted in ((6, True), (7, False), (12, True)):
        for order in strategy.plan_evaluate(state, rnd, EVERYONE):
            assert (bool(order.compare), "vote" in order.options) == (wanted, wanted)
            assert set(order.trees) == (set(NAMES) if wanted else {order.adapter})
    routed = replace(state, facts={**state.facts, "route": {"0": "c0", "1": "c0", "2": "c2"}}, rounds=13)
    last = strategy.plan_evaluate(routed, 13, EVERYONE)[0]
    assert last.options["vote"] == "c0:2,c1:0,c2:1"
    assert not last.compare
    assert set(last.trees) == set(NAMES)
    assert "vote" not in strategy.plan_evaluate(begin(strategy), 6, EVERYONE)[0].options
