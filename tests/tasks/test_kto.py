"""KTO: published vectors, weights from counts, and a reference point at batch size 1."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from core.sections import LoraConfig, ModelConfig, TrainConfig
from tasks.base import Batch, Example
from tasks.data.base import thumbs as thumbs_of
from tasks.forward.logprobs import completion_logps
from tasks.forward.modes import reference
from tasks.forward.setup import load_base
from tasks.kto import KTO, class_weights, deranged, kto_loss
from tasks.model.adapter import set_adapter
from tasks.model.base import Base
from tasks.tokens.cache import Cache
from tasks.tokens.encode import Encoder
from tasks.training.loop import train
from tests import tiny
from tests.vectors import OPENFEDLLM


def vectors(key: str):
    return OPENFEDLLM[key]


def batch(ratios, labels, kl_ratios=(), **options) -> Batch:
    """Rows with these log pi/pi_ref, float64 with gradient; references are 0."""
    logps = torch.tensor(ratios, dtype=torch.float64, requires_grad=True)
    kl = torch.tensor(kl_ratios, dtype=torch.float64)
    examples = tuple(Example((1,), ((2,),), label) for label in labels)
    index = tuple((i,) for i in range(len(labels)))
    counts = torch.ones(len(labels), dtype=torch.int64)
    zeros = torch.zeros_like
    return Batch(examples, logps, zeros(logps), counts, index, kl, zeros(kl), **options)


@pytest.mark.parametrize(
    "case", ["positive_kl", "negative_kl_clamped_to_0", "weighted_desirable_3", "only_undesirable_in_batch"]
)
def test_the_published_vectors(case: str) -> None:
    """Losses, z, rewards and gradients, to 1e-12; one class alone is no NaN, and z gets no gradient."""
    vector = vectors("kto_loss")
    inputs, want = vector["inputs"]["cases"][case], vector["outputs"][case]
    ratios = [p - r for p, r in zip(inputs["pc"] + inputs["pr"], inputs["rc"] + inputs["rr"], strict=True)]
    labels = [True] * len(inputs["pc"]) + [False] * len(inputs["pr"])
    kl = [p - r for p, r in zip(inputs["pk"], inputs["rk"], strict=True)]
    rows = batch(ratios, labels, kl)
    task = KTO(beta=0.1, desirable_weight=str(inputs.get("dw", 1.0)), undesirable_weight="1")
    output = task.loss(rows)
    loss, metrics = output.loss, output.metrics
    loss.backward()
    assert metrics["kl"] == pytest.approx(want["kl"], abs=1e-12)
    assert loss.item() == pytest.approx(want["mean"], abs=1e-12)
    assert rows.logps.grad is not None
    gradients = (want["grad_chosen_logps"] or []) + want["grad_rejected_logps"]
    assert rows.logps.grad.tolist() == pytest.approx(gradients, abs=1e-12)
    losses = kto_loss(
        torch.tensor(ratios, dtype=torch.float64),
        torch.tensor(labels),
        want["kl"],
        beta=0.1,
        desirable=inputs.get("dw", 1.0),
    )
    assert losses.tolist() == pytest.approx(want["losses"], abs=1e-12)
    for name in ("chosen", "rejected"):
        rewards = want[f"{name}_rewards"]
        if rewards:
            assert metrics[f"rewards/{name}"] == pytest.approx(sum(rewards) / len(rewards), abs=1e-12)
        else:
            assert f"rewards/{name}" not in metrics


@pytest.mark.parametrize(
    ("n_d", "n_u", "want"),
    [
        (10, 10, (1.0, 1.0)),
        (12, 10, (1.0, 1.0)),  # 1.2 is inside [1, 4/3]
        (10, 30, (3.0, 1.0)),  # raised to 1 : 1
        (30, 10, (1.0, 2.25)),  # 30 : 22.5 = 4 : 3
        (10, 0, (1.0, 1.0)),
        (0, 10, (1.0, 1.0)),
        (0, 0, (1.0, 1.0)),
    ],
)
def test_auto_weights_are_inside_the_band_of_the_paper(n_d: int, n_u: int, want: tuple[float, float]) -> None:
    settings = KTO().pooled_options({"n_desirable": n_d, "n_undesirable": n_u})
    assert (settings["desirable-weight"], settings["undesirable-weight"]) == pytest.approx(want)
    assert "z0" not in settings


@given(
    st.integers(1, 500),
    st.integers(1, 500),
    st.sampled_from([None, 0.5, 3.0]),
    st.sampled_from([None, 0.5, 3.0]),
)
def test_only_free_weights_move_and_they_reach_the_band(n_d: int, n_u: int, w_d, w_u) -> None:
    got = class_weights(n_d, n_u, w_d, w_u)
    assert got[0] == w_d or w_d is None
    assert got[1] == w_u or w_u is None
    if w_d is None or w_u is None:
        assert 1 - 1e-9 <= got[0] * n_d / (got[1] * n_u) <= 4 / 3 + 1e-9


def test_weights_reach_the_loss() -> None:
    """r = z = 0: each loss is w / 2."""
    settings = KTO().pooled_options({"n_desirable": 10, "n_undesirable": 30})
    loss = KTO().loss(batch([0.0, 0.0], [True, False], options=settings)).loss
    assert loss.item() == pytest.approx((3.0 + 1.0) / 4)
    task = KTO(desirable_weight="2", undesirable_weight="4")
    loss = task.loss(batch([0.0, 0.0], [True, False], options=settings)).loss
    assert loss.item() == pytest.approx((2.0 + 4.0) / 4)


def test_an_uncertain_pair_becomes_two_uncertain_thumbs() -> None:
    """The expected loss over the label. beta 1, z = 0; r = ln 3 and -ln 3: sigmoid 3/4 and 1/4. Desirable with
    certainty c: c w_D (1 - s(r)) + (1 - c) w_U (1 - s(-r)); both thumbs of a pair have its c = 0.8."""
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "label_confidence": 0.8}
    task = KTO(beta=1.0, desirable_weight="2", undesirable_weight="1")
    good, bad = task.examples(thumbs_of([row]), Encoder(tiny.tokenizer(), "none", 9))
    ratio = math.log(3)
    output = task.loss(replace(batch([ratio, -ratio], [True, False]), examples=(good, bad)))
    loss, metrics = output.loss, output.metrics
    liked, disliked = 0.8 * 2 * 0.25 + 0.2 * 1 * 0.75, 0.8 * 1 * 0.25 + 0.2 * 2 * 0.75
    assert loss.item() == pytest.approx((liked + disliked) / 2)
    assert metrics["rewards/chosen"] == pytest.approx(ratio)
    assert task.row_counts([good, bad, replace(good, confidence=1.0)]) == pytest.approx(
        {"n_desirable": 0.8 + 0.2 + 1, "n_undesirable": 0.2 + 0.8}
    )


def test_confidence_one_and_zero_are_the_label_and_the_other() -> None:
    ratios, labels = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([True, False])
    weights = {"beta": 0.5, "desirable": 1.5, "undesirable": 0.5}
    for confidence, sides in ((1.0, labels), (0.0, ~labels)):
        got = kto_loss(ratios, labels, 0.1, confidence=torch.full((2,), confidence), **weights)
        assert got.tolist() == pytest.approx(kto_loss(ratios, sides, 0.1, **weights).tolist())


def test_without_mismatched_pairs_z_is_the_servers_or_zero() -> None:
    """A single row has nothing to be paired with: no kl is reported unless the server gave one."""
    alone = batch([1.0], [True])
    output = KTO().loss(alone)
    metrics = output.metrics
    assert "kl" not in metrics
    assert output.sums == {}
    metrics = KTO().loss(batch([1.0], [True], options={"z0": 0.4})).metrics
    assert metrics["kl"] == 0.4
    metrics = KTO().loss(batch([1.0], [True], options={"z0": -0.4})).metrics
    assert metrics["kl"] == 0.0


def test_the_pooled_point_runs_from_the_servers_value() -> None:
    """z0 = 1 stands for 32 rows; a row of 3 fades it by 31/32: (31 * 1 + 3) / (31 + 1). Then one of -1."""
    task, options = KTO(reference_point="pooled"), {"z0": 1.0}
    first = task.loss(batch([0.0], [True], [3.0], options=options))
    assert first.metrics["kl"] == pytest.approx(34 / 32)
    second = task.loss(batch([0.0], [True], [-1.0], options=options, running=first.running))
    assert second.metrics["kl"] == pytest.approx((34 * 31 / 32 - 1) / 32)
    assert (first.sums, second.sums) == ({"kl_sum": 3.0, "kl_count": 1.0}, {"kl_sum": -1.0, "kl_count": 1.0})
    pooled = {"n_desirable": 1, "n_undesirable": 1, "kl_sum": 2.0, "kl_count": 2.0}
    assert task.pooled_options(pooled)["z0"] == 1.0


def test_a_batch_without_mismatched_rows_passes_the_running_point_on() -> None:
    running = {"weight": 3.0, "total": 6.0}
    output = KTO(reference_point="pooled").loss(batch([0.0], [True], running=running))
    assert output.running == running


@pytest.mark.parametrize("running", [{}, {"weight": 3.0, "total": 6.0}])
def test_the_loss_modifies_no_part_of_its_batch(running: dict[str, float]) -> None:
    options = {"z0": 1.0}
    rows = batch([0.5], [True], [3.0], options=options, running=running)
    before = (
        copy.deepcopy((options, running)),
        [t.clone() for t in vars(rows).values() if isinstance(t, torch.Tensor)],
    )
    KTO(reference_point="pooled").loss(rows)
    tensors = [t for t in vars(rows).values() if isinstance(t, torch.Tensor)]
    assert (options, running) == before[0]
    assert all(torch.equal(a, b) for a, b in zip(tensors, before[1], strict=True))


def test_the_pooled_point_fades_by_every_row_of_a_batch() -> None:
    """Two rows of 3 fade z0 = 1 by (31/32)^2: (32 (31/32)^2 + 6) / (32 (31/32)^2 + 2)."""
    faded = 32 * (31 / 32) ** 2
    rows = batch([0.0, 0.0], [True, True], [3.0, 3.0], options={"z0": 1.0})
    metrics = KTO(reference_point="pooled").loss(rows).metrics
    assert metrics["kl"] == pytest.approx((faded + 6) / (faded + 2), rel=1e-12)


@pytest.mark.parametrize(
    "options",
    [{"beta": -1.0}, {"reference_point": "none"}, {"desirable_weight": "much"}, {"undesirable_weight": "0"}],
)
def test_impossible_settings_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match=r"task\."):
        KTO(**options)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tiny.folder(tmp_path_factory.mktemp("kto") / "model")
    return load_base(ModelConfig(name=str(folder)), LoraConfig(r=4))


def thumbs(count: int) -> list[Example]:
    rng = torch.Generator().manual_seed(4)

    def tokens(most: int) -> tuple[int, ...]:
        return tuple(
            torch.randint(
                3, tiny.VOCABULARY, (int(torch.randint(2, most, (1,), generator=rng)),), generator=rng
            ).tolist()
        )

    return [Example((1, *tokens(6)), (tokens(9),), bool(i % 2)) for i in range(count)]


def test_the_pooled_point_is_nearly_unbiased_at_batch_size_1(base: Base) -> None:
    """Against z of one batch of all 64 rows, over adapters that have moved apart, and no learning. A batch of one
    takes max(0, r) of a single ratio (its deviation is 3), whose mean is far above max(0, mean r); the pooled
    point averages before it clips. Two rounds: the server turns the sums of the first into the z0 of the second.
    """
    rows = deranged(thumbs(64), seed=0, max_length=32)
    forks = [(e.prompt, (e.mismatched,)) for e in rows]
    cfg = TrainConfig(learning_rate=1e-12, local_steps=64, per_device_batch_size=1, max_length=32)
    pooled = KTO(reference_point="pooled")
    with reference(base):
        frozen = completion_logps(base, forks)
    errors: dict[str, list[float]] = {"batch": [], "pooled": []}
    for seed in range(3, 9):
        set_adapter(base, tiny.random_adapter(base, seed=seed, size=0.25))
        with torch.no_grad():
            mean = float((completion_logps(base, forks) - frozen).mean())
        assert mean > 0.2  # otherwise z could match the clipped value by accident
        errors["batch"].append(train(base, KTO(), rows, cfg, seed=0).metrics["kl"] - mean)
        first = train(base, pooled, rows, cfg, seed=1)
        assert first.sums["kl_sum"] / first.sums["kl_count"] == pytest.approx(mean, abs=1e-4)
        settings = pooled.pooled_options({**pooled.row_counts(rows), **first.sums})
        errors["pooled"].append(train(base, pooled, rows, cfg, seed=2, options=settings).metrics["kl"] - mean)
    bias = {name: sum(values) / len(values) for name, values in errors.items()}
    assert bias["batch"] > 0.8
    assert abs(bias["pooled"]) < 0.15


@pytest.mark.parametrize("labels", [[True] * 5, [False] * 5, [True]])
@pytest.mark.parametrize("reference_point", ["batch", "pooled"])
def test_clients_of_one_class_or_one_row_train(base: Base, labels: list[bool], reference_point: str) -> None:
    rows = [replace(e, label=label) for e, label in zip(thumbs(5), labels, strict=False)]
    task = KTO(reference_point=reference_point)
    set_adapter(base, tiny.random_adapter(base))
    cfg = TrainConfig(learning_rate=1e-3, local_steps=2, per_device_batch_size=2, max_length=32)
    report = train(base, task, rows, cfg, seed=0, options=task.pooled_options(task.row_counts(rows)))
    assert report.metrics["loss"] == report.metrics["loss"] > 0  # a number, not NaN
    assert ("kl" in report.metrics) == (len(rows) > 1)
    assert ("kl_count" in report.sums) == (len(rows) > 1)


def test_pairs_stay_fixed_over_rounds(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same data_seed in another round meets cached references only."""
    rows = thumbs(6)
    cfg = TrainConfig(local_steps=1, per_device_batch_size=6, max_length=32)
    train(base, KTO(), rows, cfg, seed=1, data_seed=5, cache=Cache(tmp_path))
    monkeypatch.setattr("tasks.forward.reference.completion_logps", None)  # calling it would fail
    train(base, KTO(), rows, cfg, seed=2, data_seed=5, cache=Cache(tmp_path))
    with pytest.raises(TypeError):
        train(base, KTO(), rows, cfg, seed=2, data_seed=6, cache=Cache(tmp_path))
