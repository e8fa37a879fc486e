"""The TRL engine: the same arithmetic as Accord's loop on the same tokens, and no other change to the base."""

import math
import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from core.errors import ConfigError, DataError
from core.sections import LoraConfig, ModelConfig, TrainConfig
from tasks.base import Example
from tasks.dpo import DPO
from tasks.forward.logprobs import completion_logps
from tasks.forward.modes import reference
from tasks.forward.setup import load_base
from tasks.kto import KTO, rotated
from tasks.model.adapter import get_adapter, set_adapter
from tasks.model.base import Base
from tasks.selector import Selector
from tasks.sft import SFT
from tasks.tokens.cache import Cache, reference_key
from tasks.training import loop, trl_engine
from tasks.training.stepper import LocalHooks
from tests import tiny

TASKS = {
    "sft": SFT(),
    "dpo": DPO(beta=0.1),
    "ipo": DPO(beta=0.1, loss_type="ipo"),
    "hinge": DPO(beta=0.1, loss_type="hinge"),
    "kto": KTO(desirable_weight="1.25"),
}
CFG = TrainConfig(learning_rate=1e-2, local_steps=3, per_device_batch_size=4, max_length=64)
ONE_STEP = replace(CFG, local_steps=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Base:
    folder = tiny.folder(tmp_path_factory.mktemp("llama"))
    return load_base(ModelConfig(name=str(folder), device="cpu"), LoraConfig(r=2, alpha=4))


@pytest.fixture(autouse=True)
def _start(base):
    """Every test starts from the same adapter: not the reference, and one for which the kl of kto is above 0."""
    draw = torch.Generator().manual_seed(12)
    set_adapter(base, {n: torch.randn(t.shape, generator=draw) * 0.3 for n, t in get_adapter(base).items()})


def rows(task, count: int = 10) -> list[Example]:
    """Random token ids of unequal lengths."""
    draw = random.Random(5)

    def ids(most: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, tiny.VOCABULARY) for _ in range(draw.randint(2, most)))

    completions = 2 if isinstance(task, DPO) else 1
    return [
        Example(ids(12), tuple(ids(20) for _ in range(completions)), label=bool(draw.randrange(2)))
        for _ in range(count)
    ]


def after(
    engine, base: Base, task, cfg: TrainConfig = CFG, **options
) -> tuple[loop.TrainReport, dict[str, torch.Tensor]]:
    start = get_adapter(base)
    report = engine.train(base, task, rows(task), cfg, seed=11, **options)
    end = get_adapter(base)
    set_adapter(base, start)
    return report, end


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Relative L2 distance of two adapters or gradients."""
    flat = [torch.cat([tree[name].flatten() for name in sorted(tree)]) for tree in (a, b)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


@pytest.mark.parametrize("name", TASKS)
def test_loss_and_gradient_equal_those_of_the_loop(base, name):
    """One step on the same batch, float32; what `correct` sees is the gradient before clipping."""
    results = []
    for engine in (trl_engine, loop):
        gradient: dict[str, torch.Tensor] = {}

        def keep(name, parameter, grad, gradient=gradient):
            gradient[name] = grad.clone()
            return grad

        report, _ = after(engine, base, TASKS[name], ONE_STEP, hooks=LocalHooks(correct=keep))
        results.append((report.metrics["loss"], gradient))
    (theirs, their_gradient), (ours, our_gradient) = results
    assert theirs == pytest.approx(ours, rel=1e-5)
    assert distance(their_gradient, our_gradient) < 1e-5


@pytest.mark.parametrize("name", TASKS)
def test_three_steps_give_the_adapter_of_the_loop(base, name):
    """AdamW divides by the root of its second moment, which magnifies a difference of 1e-6 in small gradients."""
    (theirs, their_end), (ours, our_end) = (after(e, base, TASKS[name]) for e in (trl_engine, loop))
    assert distance(their_end, our_end) < 1e-3
    shared = theirs.metrics.keys() & ours.metrics.keys()
    assert shared >= (
        {"loss"} if name == "sft" else {"loss", "rewards/chosen", "rewards/margins", "logps/rejected"}
    )
    for metric in shared:
        assert theirs.metrics[metric] == pytest.approx(ours.metrics[metric], rel=1e-3, abs=1e-3), metric
    assert (theirs.steps, theirs.rows) == (ours.steps, ours.rows) == (3, 12)


@pytest.mark.parametrize("name", ["sft", "dpo", "kto"])
def test_accumulated_micro_batches_are_one_step(base, name):
    cfg = replace(CFG, gradient_accumulation_steps=2)
    ends = []
    for engine in (trl_engine, loop):
        start = get_adapter(base)
        engine.train(base, TASKS[name], rows(TASKS[name]), replace(cfg, local_steps=2), seed=11)
        ends.append(get_adapter(base))
        set_adapter(base, start)
    assert distance(*ends) < 1e-3


def test_the_reference_is_the_frozen_base_in_every_round(base):
    """TRL alone would start every round at ln 2, from a copy of the adapter it was given."""
    batch = rows(DPO(beta=0.1), 4)
    forks = [(e.prompt, e.completions) for e in batch]
    for _ in range(3):
        with torch.no_grad():
            policy = completion_logps(base, forks)
        with reference(base):
            frozen = completion_logps(base, forks)
        ratios = (policy - frozen).view(-1, 2)
        closed_form = -logsigmoid(0.1 * (ratios[:, 0] - ratios[:, 1])).mean()
        report = trl_engine.train(base, DPO(beta=0.1), batch, replace(CFG, local_steps=1), seed=1)
        assert report.metrics["loss"] == pytest.approx(float(closed_form), rel=1e-5)
        assert abs(report.metrics["loss"] - math.log(2)) > 1e-3
        assert list(base.model.peft_config) == ["default"]


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_cached_references_change_nothing(base, name):
    cached = after(trl_engine, base, TASKS[name], cache=Cache(None))
    fresh = after(trl_engine, base, TASKS[name])
    assert distance(cached[1], fresh[1]) < 1e-3
    margins = [report.metrics["rewards/margins"] for report, _ in (cached, fresh)]
    assert margins[0] == pytest.approx(margins[1], rel=1e-3)


def test_cached_references_are_read(base):
    """One nat more for every chosen completion under the reference: beta less of reward."""
    cache = Cache(None)
    before = after(trl_engine, base, DPO(beta=0.1), ONE_STEP, cache=cache)[0].metrics
    references = cache.references(reference_key(base.fingerprint, base.numerics))
    references |= {key: (values[0] + 1, values[1]) for key, values in references.items()}
    moved = after(trl_engine, base, DPO(beta=0.1), ONE_STEP, cache=cache)[0].metrics
    assert moved["rewards/chosen"] - before["rewards/chosen"] == pytest.approx(-0.1, abs=1e-5)


@pytest.mark.parametrize("architecture", ["gemma2", "gpt2"])
def test_models_on_padded_batches_agree_too(tmp_path, architecture):
    folder = tiny.folder(tmp_path, architecture)
    other = load_base(ModelConfig(name=str(folder), device="cpu"), LoraConfig(r=2, alpha=4))
    (theirs, their_end), (ours, our_end) = (after(e, other, DPO(beta=0.1)) for e in (trl_engine, loop))
    assert theirs.metrics["loss"] == pytest.approx(ours.metrics["loss"], rel=1e-5)
    assert distance(their_end, our_end) < 1e-3


@pytest.mark.parametrize("name", ["sft", "dpo", "kto"])
def test_a_base_that_checkpoints_gradients_trains_the_same(base, name):
    base.causal.gradient_checkpointing_enable({"use_reentrant": False})
    _, checkpointed = after(trl_engine, base, TASKS[name])
    was_checkpointing = base.causal.is_gradient_checkpointing
    base.causal.gradient_checkpointing_disable()
    _, plain = after(trl_engine, base, TASKS[name])
    assert was_checkpointing
    assert distance(checkpointed, plain) < 1e-5


def test_rows_with_mismatched_completions_keep_them(base):
    """kto with the rotation of TRL 1.16 instead of a client's fixed pairs: the same kl in both engines."""
    rotation = rotated(rows(KTO(beta=0.1), 4), 4, max_length=64)
    assert rotation[0].mismatched == rotation[3].completions[0]
    start = get_adapter(base)
    results = []
    for engine in (trl_engine, loop):
        results.append(engine.train(base, KTO(beta=0.1), rotation, CFG, seed=1).metrics["kl"])
        set_adapter(base, start)
    assert results[0] == pytest.approx(results[1], rel=1e-3)
    assert results[0] > 0


def test_class_weights_of_the_order_are_applied(base):
    weights = {"desirable-weight": 2.0, "undesirable-weight": 3.0}
    plain, weighed = (
        after(trl_engine, base, task, ONE_STEP, **options)[0].metrics["loss"]
        for task, options in ((KTO(beta=0.1), {}), (KTO(beta=0.1), {"options": weights}))
    )
    ours = after(loop, base, KTO(beta=0.1), ONE_STEP, options=weights)[0].metrics["loss"]
    assert weighed == pytest.approx(ours, rel=1e-5)
    assert weighed > 2 * plain


@pytest.mark.parametrize("name", ["sft", "dpo", "kto"])
def test_only_the_weights_change(name, tmp_path_factory, tmp_path, monkeypatch, capfd):
    """No file, output or adapter is left; configuration, forward, flags and global generators are restored."""
    folder = tiny.folder(tmp_path_factory.mktemp("fresh"))
    fresh = load_base(ModelConfig(name=str(folder), device="cpu"), LoraConfig(r=2, alpha=4))
    causal = fresh.causal
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    draws = random.getstate(), np.random.get_state()[1], torch.random.get_rng_state()
    configs = causal.config.to_dict(), causal.generation_config.to_dict()
    trainable = [n for n, p in fresh.model.named_parameters() if p.requires_grad]
    capfd.readouterr()
    trl_engine.train(fresh, TASKS[name], rows(TASKS[name]), replace(CFG, local_steps=1), seed=11)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.rglob("*"))
    assert random.getstate() == draws[0]
    assert np.array_equal(np.random.get_state()[1], draws[1])
    assert torch.equal(torch.random.get_rng_state(), draws[2])
    assert (causal.config.to_dict(), causal.generation_config.to_dict()) == configs
    assert "forward" not in vars(causal)
    assert list(fresh.model.peft_config) == ["default"]
    assert [n for n, p in fresh.model.named_parameters() if p.requires_grad] == trainable
    assert not any(module.training for module in fresh.model.modules())


def test_the_loop_is_unaffected_by_an_earlier_trl_round(base):
    """Accord's loop gives the same bytes before and after a round of TRL."""
    first = after(loop, base, DPO(beta=0.1))[1]
    after(trl_engine, base, DPO(beta=0.1))
    again = after(loop, base, DPO(beta=0.1))[1]
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_seed_decides_the_rows(base):
    ends = [after(trl_engine, base, DPO(beta=0.1))[1]]
    ends.append(after(trl_engine, base, DPO(beta=0.1))[1])
    start = get_adapter(base)
    trl_engine.train(base, DPO(beta=0.1), rows(DPO(beta=0.1)), CFG, seed=12)
    other = get_adapter(base)
    set_adapter(base, start)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert distance(ends[0], other) > 1e-2


def test_correct_changes_the_step(base):
    """A gradient replaced by zero leaves the adapter where it was."""
    start = get_adapter(base)
    hooks = LocalHooks(correct=lambda name, parameter, grad: torch.zeros_like(grad))
    _, end = after(trl_engine, base, DPO(beta=0.1), hooks=hooks)
    assert all(torch.equal(start[name], end[name]) for name in start)


@pytest.mark.parametrize(
    ("task", "cfg", "key"),
    [
        (DPO(beta=0.1, label_smoothing=0.1), CFG, "label-smoothing = 0.1"),
        (KTO(beta=0.1, reference_point="pooled"), CFG, "reference-point"),
        (KTO(beta=0.1), replace(CFG, per_device_batch_size=1), "two rows"),
    ],
    ids=["smoothing", "pooled", "one row"],
)
def test_tasks_and_settings_that_trl_does_not_support_are_refused(base, task, cfg, key):
    with pytest.raises(ConfigError, match=key) as error:
        trl_engine.train(base, task, rows(task), cfg, seed=1)
    assert "train.engine = 'accord'" in str(error.value)


@dataclass(frozen=True)
class OtherLoss(DPO):
    """Inherits how TRL trains dpo, which would ignore its loss."""

    def loss(self, batch):
        output = super().loss(batch)
        return replace(output, loss=2 * output.loss)


@pytest.mark.parametrize("task", [Selector(), OtherLoss()])
def test_a_task_that_does_not_declare_trl_for_its_own_loss_is_refused(base, task):
    with pytest.raises(ConfigError, match=f"{type(task).__name__}.*train.engine = 'accord'"):
        trl_engine.train(base, task, rows(task), CFG, seed=1)


def test_labels_with_a_confidence_below_1_are_refused(base):
    unsure = [replace(e, confidence=0.9) for e in rows(DPO())]
    with pytest.raises(ConfigError, match=r"label_confidence below 1; use train\.engine"):
        trl_engine.train(base, DPO(), unsure, CFG, seed=1)


def test_an_empty_list_of_examples_is_an_error(base):
    with pytest.raises(DataError, match="without usable rows"):
        trl_engine.train(base, DPO(beta=0.1), [], CFG, seed=1)
