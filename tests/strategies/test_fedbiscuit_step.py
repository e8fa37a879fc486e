"""FedBiscuit's step on the server: the reference's own runs and the repaired rules."""

import pytest

from core.seeds import rng_for
from core.types import Client, ServerState, Update
from strategies.fedbiscuit import FedBiscuit
from tests.strategies.selectors import GROUPED, LAYOUT, NAMES, begin
from tests.strategies.simulated_rounds import close, merge, tree64
from tests.vectors import FEDBISCUIT

RULES = [
    ("ref_uniform", {"server_rule": "eq8"}, GROUPED),
    ("ref_uniform", {"server_rule": "auto"}, GROUPED),
    ("ref_size", {"server_rule": "eq8", "weighting": "examples"}, GROUPED),
    ("fix_MA", {}, GROUPED),
    ("fix_MA_size", {"weighting": "examples"}, GROUPED),
    ("fix_cluster_norm", {"server_rule": "cluster-norm", "weighting": "examples"}, GROUPED),
    ("ref_warmup_fedavg_uniform", {}, 1),
    ("ref_warmup_fedavg_size", {"weighting": "examples"}, 1),
]


@pytest.mark.parametrize(("entry", "options", "first"), RULES)
def test_the_vectors(entry, options, first):
    document = FEDBISCUIT["eq8_aggregation"]
    sizes, groups = document["n_samples"], document["group_of_client"]

    def selectors(flat: dict) -> dict:
        trees: dict = {name: {} for name in NAMES}
        for key, values in flat.items():
            trees[f"c{key[-1]}"]["A" if "lora_A" in key else "B"] = values
        return {name: tree64(tree) for name, tree in trees.items()}

    strategy = FedBiscuit(**options)
    fields = {"clients": 10, "examples": dict(enumerate(sizes))}
    state = ServerState(0, 0, selectors(document["init"]), **fields)
    wanted = document["state_after_each_round"][entry]
    for i, (clients, deltas) in enumerate(zip(document["rounds"], document["deltas"], strict=True)):
        updates = [
            Update(c, sizes[c], f"c{groups[c]}", {"delta": tree64(deltas[str(c)])}, {}) for c in clients
        ]
        before = state
        state, _ = merge(strategy, state, first + i, updates)
        for name, want in selectors(wanted[i]).items():
            close(state.adapters[name], want)
            if name not in {u.adapter for u in updates}:
                assert all(t.equal(before.adapters[name][n]) for n, t in state.adapters[name].items())


def test_the_expected_step_of_a_round():
    """Over the selectors the gains of any one round add up to A/M with eq8 and to 1 with ma."""
    for case in FEDBISCUIT["eq8_effective_step"]["cases"]:
        clients = [Client(c, 1) for c in range(case["M"])]
        names = [f"c{u}" for u in range(case["U"])]
        asked = rng_for(0, "asked").sample(clients, case["A"])
        updates = [Update(c.id, 1, names[c.id % case["U"]], {}, {}) for c in asked]
        for rule, key in (("eq8", "expected_step_per_round_eq8"), ("ma", "expected_step_per_round_fix_MA")):
            strategy = FedBiscuit(selectors=case["U"], server_rule=rule)
            state, trained = begin(strategy, clients), {u.adapter for u in updates}
            gains = [strategy.gain(state, 99, name, updates) for name in names if name in trained]
            assert sum(gains) / case["U"] == pytest.approx(case[key], abs=1e-8)


def test_a_selector_without_participants_stays_to_the_bit_with_its_moments_and_its_average():
    strategy = FedBiscuit(server_optimizer="adam", ema=0.5)
    state = begin(strategy)

    def trained(*names: str) -> list[Update]:
        return [
            Update(i, 10, n, {"delta": {k: t + 0.1 for k, t in LAYOUT.items()}}, {})
            for i, n in enumerate(names)
        ]

    state, _ = merge(strategy, state, GROUPED, trained(*NAMES))
    after, _ = merge(strategy, state, GROUPED + 1, trained("c0", "c2", "c2"))
    for trees, old in ((after.adapters, state.adapters), (after.memory, state.memory)):
        assert trees.keys() == old.keys()
        for name, tree in trees.items():
            moved = [not t.equal(old[name][n]) for n, t in tree.items()]
            assert all(moved) != name.startswith("c1")
            assert any(moved) != name.startswith("c1")
