"""Private parts in the training loop: frozen parts, stages and learning rates."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.factors import is_private, part_of
from core.sections import LoraConfig, ModelConfig, TrainConfig
from core.tree import Tree
from tasks.base import Example, Parts
from tasks.dpo import DPO
from tasks.forward.setup import load_base
from tasks.model.adapter import get_adapter, get_private, initial_adapter, set_adapter
from tasks.model.base import Base
from tasks.pdpo import PDPO
from tasks.tokens.cache import Cache, reference_key
from tasks.training.loop import train
from tasks.training.stepper import LocalHooks
from tests import tiny

CFG = TrainConfig(learning_rate=1e-2, local_steps=4, per_device_batch_size=4)
PAIRS = [
    Example((1, *range(5, 8 + i)), (tuple(range(20, 25 + i)), tuple(range(60 - i, 63 + i % 3))))
    for i in range(6)
]
ALL = PDPO(beta=0.1).private_parts
SHARED = LocalHooks(trains=lambda name: not is_private(name))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.folder(tmp_path_factory.mktemp("stages") / "model"))


def loaded(folder: str, parts: Parts = ALL) -> Base:
    return load_base(ModelConfig(name=folder), LoraConfig(r=4), parts)


def trained(base: Base, task, cfg: TrainConfig = CFG, start: Tree | None = None, **options):
    set_adapter(base, {**(start or initial_adapter(base, 0)), **base.private_parts.start(0, 0)})
    before = {**get_adapter(base), **get_private(base)}
    report = train(base, task, PAIRS, cfg, seed=1, **options)
    after = {**get_adapter(base), **get_private(base)}
    return after, {n for n, t in after.items() if not t.equal(before[n])}, report


@pytest.mark.parametrize("optimizer_state", ["reset", "keep"])
@pytest.mark.parametrize("far", [False, True])
def test_with_frozen_private_parts_pdpo_equals_dpo_exactly(folder: str, far: bool, optimizer_state) -> None:
    """From LoRA's start and from elsewhere, with decay and clipping."""
    cfg = replace(CFG, weight_decay=0.1, max_grad_norm=0.05, optimizer_state=optimizer_state)
    plain = loaded(folder, Parts())
    start = tiny.random_adapter(plain) if far else initial_adapter(plain, 0)
    want, _, dpo_report = trained(plain, DPO(beta=0.1), cfg, start)
    for parts in ("bottleneck,head", "bottleneck,head,reward"):
        task = PDPO(beta=0.1, parts=parts, mix="gate")
        got, _, report = trained(loaded(folder, task.private_parts), task, cfg, start, hooks=SHARED)
        assert all(torch.equal(got[n], t) for n, t in want.items()), parts
        assert report.metrics == dpo_report.metrics


def test_dpo_and_pdpo_share_cached_references(folder: str, tmp_path: Path) -> None:
    """The reference depends on the base alone, so that pdpo reads what dpo stored."""
    trained(loaded(folder, Parts()), DPO(beta=0.1), cache=Cache(tmp_path))
    base = loaded(folder)
    before = dict(Cache(tmp_path).references(reference_key(base.fingerprint, base.numerics)))
    trained(base, PDPO(beta=0.1), cache=Cache(tmp_path))
    assert before == Cache(tmp_path).references(reference_key(base.fingerprint, base.numerics))
    assert len(before) == len(PAIRS)
    trained(base, PDPO(beta=0.1), cache=Cache(tmp_path / "other"))
    assert before == Cache(tmp_path / "other").references(reference_key(base.fingerprint, base.numerics))


def test_joint_training_updates_all_tensors(folder: str) -> None:
    after, changed, report = trained(loaded(folder), PDPO(beta=0.1))
    assert changed == set(after)
    assert {"explicit/margins", "explicit/accuracies", "rewards/accuracies"} <= report.metrics.keys()


def test_alternating_trains_the_private_parts_first(folder: str) -> None:
    """Of four steps, two train the private parts and two the adapter."""
    base, task = loaded(folder), PDPO(order="alternating")
    seen: list[set[str]] = []

    def watch(name, parameter, gradient):
        if name in list(base.flat.parameters)[:1] or name == "private.reward.weight":
            seen.append({part_of(name)})
        return gradient

    after, changed, report = trained(base, task, hooks=LocalHooks(correct=watch))
    assert seen == [{"reward"}, {"reward"}, {""}, {""}]
    assert changed == set(after)
    assert (report.steps, report.rows) == (4, 16)


def test_a_newcomer_opens_with_its_own_parts(folder: str) -> None:
    """Three steps more, in which the adapter rests; with nothing else to follow it ends where it was."""
    base = loaded(folder)
    _, _, report = trained(base, PDPO(beta=0.1), hooks=LocalHooks(private_steps=3))
    assert report.steps == 7
    still = LocalHooks(private_steps=3, trains=is_private)
    _, changed, _ = trained(base, PDPO(beta=0.1), replace(CFG, local_steps=1), hooks=still)
    assert changed
    assert all(map(is_private, changed))


def test_each_part_has_its_own_rate(folder: str) -> None:
    """One AdamW step moves an entry with a gradient by the rate."""
    task = PDPO(bottleneck_rate=2.0, head_rate=3.0, reward_rate=5.0)
    base = loaded(folder, task.private_parts)
    set_adapter(base, {**initial_adapter(base, 0), **base.private_parts.start(0, 0)})
    before = {**get_adapter(base), **get_private(base)}
    after, _, _ = trained(base, task, replace(CFG, local_steps=1))
    for name in ("private.bottleneck.up", "private.head.left", "private.reward.weight"):
        rate = task.rate(part_of(name))
        assert (after[name] - before[name]).abs().max().item() == pytest.approx(rate * 1e-2, rel=1e-2), name
    moved = max((after[n] - before[n]).abs().max().item() for n in before if ".lora_B." in n)
    assert moved == pytest.approx(1e-2, rel=1e-2)


def test_moments_of_all_stages_are_returned(folder: str) -> None:
    base, keep = loaded(folder), replace(CFG, optimizer_state="keep")
    _, _, report = trained(base, PDPO(order="alternating"), keep)
    assert report.moments["adam.step"].keys() == base.flat.parameters.keys()
    assert {t.item() for t in report.moments["adam.step"].values()} == {2.0}
    memory = {**report.moments, "own": get_private(base)}
    _, _, more = trained(base, PDPO(order="alternating"), keep, hooks=LocalHooks(moments=memory))
    assert {t.item() for t in more.moments["adam.step"].values()} == {4.0}
    assert "own" not in more.moments
