"""The training loop is deterministic, equals a plain loop, and leaks no tensors."""

import gc
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from core.errors import DataError
from core.sections import LoraConfig, ModelConfig, TrainConfig
from core.tree import Tree
from tasks.base import Batch, Example, LossOutput
from tasks.dpo import DPO, dpo_loss
from tasks.forward.batches import subset
from tasks.forward.logprobs import completion_logps
from tasks.forward.modes import reference
from tasks.forward.reference import reference_logps
from tasks.forward.setup import load_base
from tasks.kto import KTO
from tasks.model.adapter import get_adapter, initial_adapter, set_adapter
from tasks.model.base import Base
from tasks.selector import Selector
from tasks.sft import SFT
from tasks.tokens.cache import Cache, reference_key
from tasks.training.loop import _BatchScorer, local_batches, row_losses, train, weight
from tasks.training.stepper import LocalHooks
from tests import tiny

CFG = TrainConfig(learning_rate=1e-2, local_steps=3, per_device_batch_size=4)
PAIRS = [
    Example((1, *range(5, 8 + i)), (tuple(range(20, 25 + i)), tuple(range(60 - i, 63 + i % 3))))
    for i in range(6)
]
THUMBS = [Example(e.prompt, e.completions[:1], i % 2 == 0) for i, e in enumerate(PAIRS)]
DEMOS = [Example(e.prompt, e.completions[:1]) for e in PAIRS]
TASKS = [
    (DPO(beta=0.1), PAIRS),
    (KTO(beta=0.1), THUMBS),
    (KTO(beta=0.1, reference_point="pooled"), THUMBS),
    (SFT(), DEMOS),
]
NAMES = ["dpo", "kto", "kto-pooled", "sft"]
CHOICES = [Example(e.prompt, ((20,), (21,)), twin=(*e.prompt, 9)) for e in PAIRS]
EVERY = [*TASKS, (Selector(antisymmetry=0.1), CHOICES)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tiny.folder(tmp_path_factory.mktemp("loop") / "model")
    return load_base(ModelConfig(name=str(folder)), LoraConfig(r=4))


def trained(base: Base, task, examples, cfg: TrainConfig = CFG, start: Tree | None = None, **options):
    set_adapter(base, start or initial_adapter(base, 0))
    report = train(base, task, examples, cfg, seed=1, **options)
    return get_adapter(base), report


def same(a: Tree, b: Tree) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("task", "examples"), TASKS, ids=NAMES)
def test_the_same_inputs_give_the_same_bytes(base: Base, task, examples, tmp_path: Path) -> None:
    """Independent of the cache and of earlier trainings; another seed gives other bytes."""
    first, report = trained(base, task, examples, cache=Cache(tmp_path))
    trained(base, DPO(beta=0.5), PAIRS)
    for cache in (Cache(tmp_path), None):
        again, other = trained(base, task, examples, cache=cache)
        assert same(first, again)
        assert replace(other, seconds=0.0) == replace(report, seconds=0.0)
    set_adapter(base, initial_adapter(base, 0))
    train(base, task, examples, CFG, seed=2)
    assert not same(first, get_adapter(base))


def test_the_loop_equals_a_plain_adamw_loop(base: Base) -> None:
    """The same batches through separate parameters, torch's clipping and torch's AdamW; float32 rounding."""
    cfg = replace(CFG, max_grad_norm=0.1, weight_decay=0.01)
    start = tiny.random_adapter(base)
    got, report = trained(base, DPO(beta=0.1), PAIRS, cfg, start)
    set_adapter(base, start)
    parameters = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in start.items()}
    optimizer = torch.optim.AdamW(
        list(parameters.values()), lr=cfg.learning_rate, weight_decay=cfg.weight_decay
    )
    with reference(base):
        refs = [completion_logps(base, [(e.prompt, e.completions)]) for e in PAIRS]
    losses = []
    for (batch,) in local_batches(len(PAIRS), cfg, steps=3, seed=1):
        base.flat.zero_grad()
        set_adapter(base, {name: p.detach() for name, p in parameters.items()})
        logps = completion_logps(base, [(PAIRS[row].prompt, PAIRS[row].completions) for row in batch]).view(
            -1, 2
        )
        ratios = logps - torch.stack([refs[row] for row in batch])
        loss = dpo_loss(ratios[:, 0] - ratios[:, 1], beta=0.1).mean()
        loss.backward()
        losses.append(float(loss.detach()))
        for name, p in parameters.items():
            gradient = base.flat.parameters[name].grad
            assert gradient is not None
            p.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), cfg.max_grad_norm)
        optimizer.step()
    for name, p in parameters.items():
        torch.testing.assert_close(got[name], p.detach(), rtol=1e-5, atol=1e-6)
    assert report.metrics["loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert (report.steps, report.rows) == (3, 12)


@pytest.mark.parametrize(("task", "examples"), [TASKS[0], TASKS[3]], ids=["dpo", "sft"])
def test_accumulated_micro_batches_equal_one_batch(base: Base, task, examples) -> None:
    """SFT weighs them by tokens: its loss is a mean over the tokens of the step. Adam divides the gradient by its
    parameters size, so entries near zero move by rounding alone: compared where the gradient is not tiny."""

    def gradients_of(cfg: TrainConfig) -> Tree:
        tree: Tree = {}
        options = {"hooks": LocalHooks(correct=lambda name, p, g: tree.setdefault(name, g.clone()))}
        trained(base, task, examples, cfg, tiny.random_adapter(base), **options)
        return tree

    whole = gradients_of(replace(CFG, local_steps=1, per_device_batch_size=6))
    parts = gradients_of(replace(CFG, local_steps=1, per_device_batch_size=2, gradient_accumulation_steps=3))
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("task", "examples"), EVERY, ids=[*NAMES, "selector"])
def test_the_loss_of_a_batch_is_the_mean_of_its_rows_by_weight(base: Base, task, examples) -> None:
    set_adapter(base, tiny.random_adapter(base))
    examples = task.prepare(examples, seed=1, max_length=64)
    refs = reference_logps(base, examples, Cache(None)) if task.needs_reference else {}
    rows = row_losses(base, task, examples, refs=refs, options={"z0": 0.5})
    weights = [weight(task, [example]) for example in examples]
    with torch.no_grad():
        scorer = _BatchScorer(base, task, refs, {"z0": 0.5})
        whole = float(scorer.score(scorer.batch(examples)).loss)
    assert len(set(rows)) == len(rows) == len(examples)
    assert sum(w * x for w, x in zip(weights, rows, strict=True)) / sum(weights) == pytest.approx(
        whole, rel=1e-5
    )


@dataclass(frozen=True)
class Numbered(DPO):
    """DPO that numbers its batches by what it carries from one to the next."""

    def loss(self, batch: Batch) -> LossOutput:
        number = batch.running.get("number", 0) + 1
        output = super().loss(batch)
        metrics = {**output.metrics, "number": number}
        return replace(
            output, metrics=metrics, running={"number": number}, sums={"rows": len(batch.examples)}
        )


def test_state_is_carried_from_batch_to_batch_and_sums_are_added_up(base: Base) -> None:
    cfg = replace(CFG, gradient_accumulation_steps=2)
    report = train(base, Numbered(), PAIRS, cfg, seed=1)
    assert report.metrics["number"] == sum(range(1, 7)) / 6
    assert report.sums == {"rows": 6 * 4}


def test_correct_sees_every_tensor_before_clipping(base: Base) -> None:
    """A correction that returns zero leaves the adapter where it was; names and shapes are the tree's."""
    start = tiny.random_adapter(base)
    shapes = {}

    def zero(name, parameter, gradient):
        shapes[name] = parameter.shape
        return torch.zeros_like(gradient)

    got, report = trained(base, DPO(beta=0.1), PAIRS, start=start, hooks=LocalHooks(correct=zero))
    assert same(got, start)
    assert shapes == {name: t.shape for name, t in start.items()}
    assert report.metrics["grad_norm"] == 0.0


def test_frozen_tensors_keep_their_values_and_are_not_reported(base: Base) -> None:
    """A keeps every bit; B takes the same step as when all tensors train, since its gradient is the same."""
    start = tiny.random_adapter(base)
    cfg = replace(CFG, optimizer="sgd", max_grad_norm=0.0, weight_decay=0.1)
    learns = lambda name: ".lora_B." in name  # noqa: E731
    hooks = LocalHooks(trains=learns, wants_gradients=True)
    got, report = trained(base, DPO(beta=0.1), PAIRS, replace(cfg, local_steps=1), start, hooks=hooks)
    assert all(p.requires_grad for p in base.flat.parameters.values()), "as before"
    whole, _ = trained(base, DPO(beta=0.1), PAIRS, replace(cfg, local_steps=1), start)
    for name, value in got.items():
        torch.testing.assert_close(value, whole[name] if learns(name) else start[name], rtol=0, atol=0)
        assert not whole[name].equal(start[name]), name
    assert report.gradients is not None
    assert report.gradients.keys() == {name for name in start if learns(name)}


def test_the_mean_gradient_is_the_direction_of_sgd(base: Base) -> None:
    """x - y = eta K g, whatever the micro-batches."""
    start = tiny.random_adapter(base)
    cfg = replace(CFG, optimizer="sgd", max_grad_norm=0.0, gradient_accumulation_steps=2)
    got, report = trained(base, DPO(beta=0.1), PAIRS, cfg, start, hooks=LocalHooks(wants_gradients=True))
    assert report.gradients is not None
    for name, gradient in report.gradients.items():
        torch.testing.assert_close((start[name] - got[name]) / (3 * 1e-2), gradient, rtol=1e-3, atol=1e-5)
    assert trained(base, DPO(beta=0.1), PAIRS, cfg, start)[1].gradients is None


def test_an_untouched_adapter_starts_at_exactly_the_reference(base: Base) -> None:
    """The loss is ln 2 and no accuracy comes from rounding; the cached references, wrong by 1, are not read."""
    cache = Cache(None)
    references = reference_logps(base, PAIRS, cache)
    wrong = {key: (values[0] - 1.0, values[1]) for key, values in references.items()}
    cache.add_references(reference_key(base.fingerprint, base.numerics), wrong)
    _, report = trained(base, DPO(beta=0.1), PAIRS, replace(CFG, local_steps=1), cache=cache)
    assert report.metrics["loss"] == pytest.approx(0.6931471805599453, abs=1e-7)
    assert report.metrics["rewards/margins"] == 0.0
    assert report.metrics["rewards/accuracies"] == 0.0
    _, report = trained(base, DPO(beta=0.1), PAIRS)
    assert report.metrics["rewards/margins"] > 0.0  # the second step reads them


def test_a_reference_does_not_depend_on_the_other_rows(base: Base) -> None:
    together = reference_logps(base, PAIRS, Cache(None))
    alone = [reference_logps(base, [example], Cache(None)) for example in reversed(PAIRS)]
    assert together == {key: values for references in alone for key, values in references.items()}


def test_references_are_computed_once(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(base, DPO(beta=0.1), PAIRS, replace(CFG, per_device_batch_size=6), cache=Cache(tmp_path))
    monkeypatch.setattr("tasks.forward.reference.completion_logps", None)  # calling it would fail
    trained(base, DPO(beta=0.1), PAIRS, replace(CFG, per_device_batch_size=6), cache=Cache(tmp_path))


def test_dropout_acts_in_sft_only_and_restores_the_global_generator(tmp_path: Path) -> None:
    name = str(tiny.folder(tmp_path))
    dropping = load_base(ModelConfig(name=name), LoraConfig(r=4, dropout=0.5))
    plain = load_base(ModelConfig(name=name), LoraConfig(r=4))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for task, examples, equal in ((DPO(beta=0.1), PAIRS, True), (SFT(), DEMOS, False)):
        assert same(trained(dropping, task, examples)[0], trained(plain, task, examples)[0]) == equal
    assert same(trained(dropping, SFT(), DEMOS)[0], trained(dropping, SFT(), DEMOS)[0])
    assert torch.equal(before, torch.get_rng_state())


def test_row_sampling_of_openfedllm_takes_a_subset_per_round(base: Base) -> None:
    """The batches hold each row of the round's subset once, for any seed."""
    cfg = replace(CFG, row_sampling="openfedllm", gradient_accumulation_steps=2)
    for seed in (1, 2):
        batches = local_batches(100, cfg, steps=3, seed=seed, rnd=5)
        assert [[len(batch) for batch in micro] for micro in batches] == [[4, 4]] * 3
        assert sorted(row for micro in batches for batch in micro for row in batch) == sorted(
            subset(100, 24, 5)
        )
    assert local_batches(100, cfg, steps=3, seed=1, rnd=5) != local_batches(100, cfg, steps=3, seed=2, rnd=5)
    few = replace(cfg, per_device_batch_size=1)
    ends = [trained(base, DPO(beta=0.1), PAIRS, replace(few, local_steps=1), rnd=rnd)[0] for rnd in (1, 2)]
    assert not same(*ends)


def test_an_empty_list_of_examples_is_an_error(base: Base) -> None:
    with pytest.raises(DataError, match="without usable rows"):
        train(base, DPO(beta=0.1), [], CFG, seed=0)


def test_a_client_with_fewer_rows_than_a_batch_repeats_them(base: Base) -> None:
    _, report = trained(base, DPO(beta=0.1), PAIRS[:1])
    assert (report.steps, report.rows) == (3, 3)


def test_rounds_leak_no_tensors(base: Base) -> None:
    """The number of live tensors after each round is the same."""
    counts = []
    for _ in range(4):
        for task, examples in TASKS:
            trained(base, task, examples)
        gc.collect()
        counts.append(sum(isinstance(o, torch.Tensor) for o in gc.get_objects()))
    assert len(set(counts[1:])) == 1
