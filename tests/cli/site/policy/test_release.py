"""What leaves a site: trees, metrics, counts, facts."""

import logging
import math
from dataclasses import replace

import pytest
import torch

from cli.site.policy.release import release, release_facts
from cli.site.policy.rules import OPEN, Policy
from core.config import parse
from core.errors import PolicyRefused
from core.tree import norm, sub
from core.types import Order, Update

CONFIG = parse({})
OPENED = Policy(**OPEN)
TREE = {"x.lora_A.weight": torch.full((2, 3), 3.0), "x.lora_B.weight": torch.full((4, 2), 4.0)}
ORDER = Order(0, {"global": {n: torch.zeros_like(t) for n, t in TREE.items()}}, run="r", round=1)
SAID = {"client": 1, "clients": 3, "examples": 57, "skipped": {"is empty": 3}, "row_counts": {"n_desirable": 34.0},
        "data": "ab12", "base": "cd34", "truth": 1, "own-words": "a row"}  # fmt: skip


def update(**changes: object) -> Update:
    return replace(Update(0, 57, "global", {"delta": TREE}, {"loss": 0.5}, tokens=1234), **changes)


def out(
    policy: Policy = OPENED, kind: str = "train", secret: bytes = b"s" * 32, order: Order = ORDER, **changes
) -> Update:
    return release(policy, CONFIG, kind, order, update(**changes), secret)


def test_in_clear_an_update_leaves_as_it_is():
    assert out() == update()


def test_a_tree_is_scaled_down_to_the_norm_and_never_up():
    policy = replace(OPENED, updates="clipped", max_norm=2.0)
    clipped = out(policy).trees["delta"]
    assert norm(clipped) == pytest.approx(2.0)
    ratio = 2.0 / math.sqrt(6 * 9 + 8 * 16)
    torch.testing.assert_close(clipped["x.lora_A.weight"], torch.full((2, 3), 3.0 * ratio))
    assert out(replace(policy, max_norm=100.0)).trees == {"delta": TREE}


def noise(value: float = 0.0, **changes) -> torch.Tensor:
    """What was added to a tree of 100 000 equal numbers, in multiples of the noise that is meant."""
    big = {"x.lora_A.weight": torch.full((100_000, 1), value)}
    policy = replace(OPENED, updates="noised", max_norm=2.0, noise_multiplier=1.5)
    order = replace(
        ORDER, trees={"global": big}, **{k: v for k, v in changes.items() if k in ("run", "round")}
    )
    more = {k: v for k, v in changes.items() if k not in ("run", "round")}
    return (
        sub(out(policy, order=order, trees={"delta": big}, **more).trees["delta"], big)["x.lora_A.weight"]
        / 3.0
    )


def test_noise_is_gaussian_of_the_size_that_is_meant():
    drawn = noise()
    assert float(drawn.mean()) == pytest.approx(0.0, abs=0.015)
    assert float(drawn.std()) == pytest.approx(1.0, abs=0.01)
    assert float((drawn.abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.01)


def test_the_same_answer_has_the_same_noise_so_that_a_mean_of_repeats_tells_nothing():
    assert torch.equal(noise(), noise())


@pytest.mark.parametrize(
    "change",
    [
        {"value": 1e-6},
        {"secret": b"t" * 32},
        {"round": 2},
        {"run": "q"},
    ],
)
def test_noise_of_two_answers_has_nothing_in_common(change):
    """A difference of two answers of nearly the same order would be free of a noise that they share."""
    both = torch.stack([noise().flatten(), noise(**change).flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.015


@pytest.mark.parametrize(
    ("kind", "trees", "message"),
    [
        (
            "train",
            {"delta": TREE, "more": TREE},
            r"train would send trees \['delta', 'more'\]; .*\['delta'\]$",
        ),
        ("train", {}, r"train would send trees \[\]"),
        ("evaluate", {"delta": TREE}, r"evaluate would send trees \['delta'\]; .*\[\]$"),
        (
            "train",
            {"delta": {**TREE, "private.head.w": torch.zeros(2)}},
            "'private.head.w', which is not a tensor",
        ),
        ("train", {"delta": {**TREE, "embedding": torch.zeros(2)}}, "'embedding', which is not a tensor"),
        (
            "train",
            {"delta": {"x.lora_A.weight": torch.zeros(3, 2)}},
            "'x.lora_A.weight', which is not a tensor",
        ),
        ("train", {"delta": {"x.lora_A.weight": torch.full((2, 3), math.nan)}}, "NaN or Inf"),
        ("train", {"delta": {"x.lora_A.weight": torch.full((2, 3), math.inf)}}, "NaN or Inf"),
    ],
)
def test_only_the_trees_that_were_asked_for_leave(kind, trees, message):
    with pytest.raises(PolicyRefused, match=message):
        out(kind=kind, trees=trees)


def test_an_answer_over_too_few_rows_stays():
    policy = replace(OPENED, min_rows=20)
    out(policy, examples=20)
    with pytest.raises(PolicyRefused, match=r"fewer rows .* min-rows = 20"):
        out(policy, examples=19)
    with pytest.raises(PolicyRefused, match=r"fewer rows .* min-rows = 20"):
        release_facts(policy, {**SAID, "examples": 19})


def test_metrics_are_numbers_under_known_names_and_others_are_dropped(caplog):
    caplog.set_level(logging.INFO)
    metrics = {
        "loss": 0.5,
        "loss/c0": 1,
        "rows": 7.0,
        "kl": math.nan,
        "accuracy": "the prompt",
        "ece": [1.0],
        "nll": True,
    }
    policy = Policy(updates="clear", min_rows=1, round_counts_to=1)
    assert out(policy, metrics=metrics).metrics == {"loss": 0.5}
    assert "drops metric='rows'" in caplog.text
    selectors = parse({"strategy.name": "fedbiscuit"})
    assert release(policy, selectors, "train", ORDER, update(metrics=metrics), b"s").metrics == {
        "loss": 0.5,
        "loss/c0": 1.0,  # which fedbiscuit declares
    }
    assert "the prompt" not in caplog.text


def test_counts_are_rounded_down():
    policy = replace(OPENED, round_counts_to=10, min_rows=10)
    assert (out(policy).examples, out(policy).tokens) == (50, 1230)
    said = release_facts(replace(policy, facts=("row-counts",)), SAID)
    assert (said["examples"], said["row_counts"]) == (50, {"n_desirable": 30.0})


def test_facts_of_the_hello_leave_by_name():
    bare = {"row_counts": {}, "data": "", "skipped": {}, "truth": None}
    want = {"client": 1, "clients": 3, "base": "cd34", "examples": 57, **bare}
    plain = replace(OPENED, facts=())
    assert release_facts(plain, SAID) == want
    for name in bare:
        told = {"rows": 3} if name == "skipped" else SAID[name]
        fact = name.replace("_", "-")
        assert release_facts(replace(plain, facts=(fact,)), SAID) == {**want, name: told}
