"""The selector: the published loss, its gradient, both orders, and equality with a plain forward pass."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from core.errors import ConfigError
from core.sections import LoraConfig, ModelConfig, TrainConfig
from tasks.base import Batch, Example
from tasks.data.base import SourceRow, canonical
from tasks.forward.setup import load_base
from tasks.model.adapter import get_adapter, initial_adapter, set_adapter
from tasks.model.base import Base
from tasks.model.head import Head
from tasks.reward import Reward
from tasks.scoring.evaluate import choice_batch, evaluate
from tasks.selector import Selector, selector_loss
from tasks.tokens.choice import calibration_error, margins
from tasks.tokens.encode import Encoder
from tasks.training.loop import train
from tasks.training.stepper import LocalHooks
from tests import tiny
from tests.vectors import FEDBISCUIT

ROWS = [
    {"prompt": f"Question {i}?", "chosen": "Right " * (1 + i % 3), "rejected": f"Wrong {i}"} for i in range(6)
]
CFG = TrainConfig(learning_rate=1e-2, local_steps=3, per_device_batch_size=4, max_length=400)
PLAIN = Example((1,), ((2,), (3,)), twin=(4,))


def batch(z: list[list[float]], examples: tuple[Example, ...] = ()) -> Batch:
    """Logits whose difference is z; (B, 2) orders."""
    logits = torch.tensor([[v, 0.0] for pair in z for v in pair], dtype=torch.float64).flatten()
    count = torch.ones(len(logits), dtype=torch.int64)
    return Batch(examples or (PLAIN,) * len(z), logits.requires_grad_(), None, count, ())


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Packed, and padded with soft-capped logits; an adapter that has moved."""
    folder = tiny.folder(tmp_path_factory.mktemp("selector") / "model", request.param)
    base = load_base(ModelConfig(name=str(folder)), LoraConfig(r=4))
    assert base.packed == (request.param == "llama")
    return base


def examples(base: Base, task=None, rows=ROWS, length: int = 400) -> list[Example]:
    return (task or Selector()).examples(rows, Encoder(base.tokenizer, "auto", length))


def test_the_published_loss_and_its_gradient() -> None:
    """Restricted cross-entropy: values to 1e-9 in float64, and no gradient but in the two letters' columns."""
    vector = FEDBISCUIT["restricted_choice_ce"]
    logits = torch.tensor(vector["logits"], dtype=torch.float64, requires_grad=True)
    a, b = vector["choice_ids"]
    positions = vector["kept"]
    where = torch.tensor([[i, t] for i, t, _ in positions]).T
    z = Head(None).logits(logits[where[0], where[1]], torch.tensor([[a, b]] * len(positions)))
    z = z[:, 0] - z[:, 1]
    p = torch.tensor([1.0 - k for _, _, k in positions], dtype=torch.float64)
    losses = selector_loss(torch.stack([z, -z], 1), p)
    assert losses.tolist() == pytest.approx(vector["per_position_loss"], abs=1e-9)
    assert losses.mean().item() == pytest.approx(vector["mean_loss"], abs=1e-9)
    losses.mean().backward()
    assert logits.grad is not None
    want = torch.zeros_like(logits)
    for g in vector["nonzero_grad_wrt_logits"]:
        want[g["b"], g["t"], g["v"]] = g["g"]
    torch.testing.assert_close(logits.grad, want, rtol=0, atol=1e-9)
    assert [int(v <= 0) for v in z.tolist()] == vector["predicted"]


def test_losses_by_hand() -> None:
    """Orders at z = 1 and -2, sure and smoothed; the pull is gamma (1 - 2)^2."""

    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    sure = (softplus(-1) + softplus(-2)) / 2
    flipped = (softplus(1) + softplus(2)) / 2
    pair = batch([[1.0, -2.0]])
    assert Selector().loss(pair).loss.item() == pytest.approx(sure)
    assert Selector(antisymmetry=0.1).loss(pair).loss.item() == pytest.approx(sure + 0.1)
    smoothed = Selector(label_smoothing=0.2).loss(pair).loss.item()
    assert smoothed == pytest.approx(0.8 * sure + 0.2 * flipped)
    unsure = batch([[1.0, -2.0]], (replace(PLAIN, confidence=0.8),))
    assert Selector().loss(unsure).loss.item() == pytest.approx(smoothed)
    output = Reward().loss(pair)
    loss, metrics = output.loss, output.metrics
    assert loss.item() == pytest.approx(softplus(-3))
    assert metrics == {"accuracy": 1.0, "rewards/margins": 3.0}
    assert Reward().loss(unsure).loss.item() == pytest.approx(0.8 * softplus(-3) + 0.2 * softplus(3))


def test_the_antisymmetry_penalty_reduces_a_bias_for_a_position() -> None:
    """If both orders prefer A, the penalty lowers both logits; it does not change an antisymmetric pair."""
    for z, want in ([[2.0, 2.0]], [8.0, 8.0]), ([[2.0, -2.0]], [0.0, 0.0]):
        pulled, plain = batch(z), batch(z)
        Selector(antisymmetry=1.0).loss(pulled).loss.backward()
        Selector().loss(plain).loss.backward()
        difference = (pulled.logps.grad - plain.logps.grad).view(-1, 2)[:, 0]
        assert difference.tolist() == pytest.approx(want)


def plain_margins(base: Base, prompts: list[tuple[int, ...]], letters: tuple[int, int]) -> Tensor:
    """Logit A - logit B from the whole vocabulary, prompt by prompt."""
    rows = [base.model(input_ids=torch.tensor([p])).logits[0, -1].float() for p in prompts]
    return torch.stack([row[letters[0]] - row[letters[1]] for row in rows])


@pytest.mark.parametrize("task", [Selector(antisymmetry=0.1), Reward()], ids=["selector", "reward"])
def test_loss_and_gradient_are_those_of_full_logits(base: Base, task) -> None:
    """The first step of the loop against model(...).logits of each prompt alone; 1e-5 is float32 rounding."""
    made = examples(base, task)
    start = tiny.random_adapter(base)
    set_adapter(base, start)
    base.flat.bind()
    base.flat.zero_grad()
    letters = made[0].completions[0][0], made[0].completions[1][0]
    z = torch.stack([plain_margins(base, [e.prompt, e.twin], letters) for e in made])
    if isinstance(task, Selector):
        loss = selector_loss(z, torch.ones(len(z)), antisymmetry=0.1).mean()
    else:
        loss = -torch.nn.functional.logsigmoid(z[:, 0] - z[:, 1]).mean()
    loss.backward()
    want = base.flat.gradients[0].clone()
    cfg = replace(CFG, optimizer="sgd", max_grad_norm=0.0, per_device_batch_size=len(made))
    report = train(
        base, task, made, replace(cfg, local_steps=1), seed=1, hooks=LocalHooks(wants_gradients=True)
    )
    assert report.metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    set_adapter(base, start)
    assert report.gradients is not None
    got = torch.cat([report.gradients[name].flatten() for name in base.flat.parameters])
    assert want.norm() > 1e-3
    assert (got - want).norm() / want.norm() < 1e-5


def test_swapping_the_answers_reverses_every_score(base: Base) -> None:
    set_adapter(base, tiny.random_adapter(base))
    back = [{**r, "chosen": r["rejected"], "rejected": r["chosen"]} for r in ROWS]
    z, swapped = (margins(choice_batch(base, examples(base, rows=rows))) for rows in (ROWS, back))
    torch.testing.assert_close(z, swapped.flip(1), rtol=1e-5, atol=1e-5)
    right, wrong = (evaluate(base, Selector(), examples(base, rows=rows)) for rows in (ROWS, back))
    assert right["accuracy"] + wrong["accuracy"] == pytest.approx(1.0)
    assert right["accuracy"] != wrong["accuracy"], "the accuracy of six pairs must not be one half"
    assert right["order_consistency"] == wrong["order_consistency"]


def test_metrics_of_held_out_pairs_equal_those_from_full_logits(base: Base) -> None:
    """The lengths of the answers are known although the answers are in the prompt."""
    set_adapter(base, tiny.random_adapter(base))
    made = examples(base)
    letters = made[0].completions[0][0], made[0].completions[1][0]
    with torch.no_grad():
        z = torch.stack([plain_margins(base, [e.prompt, e.twin], letters) for e in made])
    got = evaluate(base, Selector(), made)
    assert got.keys() == {
        "examples", "loss", "accuracy", "accuracy/single_order", "order_consistency", "ece", "length/accuracies"
    }  # fmt: skip
    assert got["examples"] == 6
    assert got["loss"] == pytest.approx(float(selector_loss(z, torch.ones(6)).mean()), rel=1e-5)
    assert got["accuracy"] == float((z[:, 0] > z[:, 1]).double().mean())
    assert got["ece"] == pytest.approx(calibration_error((z[:, 0] - z[:, 1]) / 2), abs=1e-5)
    longer = [len(r["chosen"].strip()) - len(r["rejected"]) for r in ROWS]
    assert got["length/accuracies"] == pytest.approx(
        sum(1.0 if x > 0 else 0.5 * (x == 0) for x in longer) / 6
    )
    rated = examples(base, Reward())
    alone = evaluate(base, Reward(), rated)
    assert "order_consistency" not in alone
    rewards = margins(choice_batch(base, rated))
    assert alone["ece"] == pytest.approx(calibration_error(rewards[:, 0] - rewards[:, 1]), abs=1e-5)
    assert evaluate(base, Selector(), []) == {}


def test_skipping_a_pair_without_room_does_not_shift_labels(base: Base) -> None:
    """Truncated and dropped rows between the others: all other scores are unchanged, and none is NaN."""
    long = {"prompt": "Long " * 200, "chosen": "yes", "rejected": "no"}
    hopeless = {"prompt": "Why?", "chosen": "x" * 500, "rejected": "no"}
    set_adapter(base, tiny.random_adapter(base))
    z = margins(choice_batch(base, examples(base)))
    mixed = margins(choice_batch(base, examples(base, rows=[ROWS[0], hopeless, long, *ROWS[1:]])))
    assert mixed.isfinite().all()
    torch.testing.assert_close(mixed[[0, *range(2, 7)]], z, rtol=1e-5, atol=1e-5)
    start = get_adapter(base)
    report = train(base, Selector(), examples(base, rows=[long, hopeless] * 3), CFG, seed=0)
    assert all(math.isfinite(v) for v in report.metrics.values())
    assert not all(t.equal(start[n]) for n, t in get_adapter(base).items())


def test_shp_labels_choose_the_right_answer(base: Base) -> None:
    """SHP: labels == 1 means that A is preferred; in the order of the row the answer to the comparison is A."""
    vector = FEDBISCUIT["bug_shp_label_inverted"]
    row = vector["row"]
    pair = canonical(SourceRow("row 0", {"history": "History", **row}))
    (example,) = examples(base, rows=[pair])
    prompt = "".join(base.tokenizer.convert_ids_to_tokens(list(example.prompt)))
    assert f"RESPONSE A: {row['human_ref_A']}" in prompt
    wrong, right = (Selector().loss(batch([[v, -v]], (example,))).loss for v in (-3.0, 3.0))
    assert right < wrong, f"target {vector['correct_target_original_order']!r} in the original order"


@pytest.mark.parametrize("task", [Selector(antisymmetry=0.1), Reward()], ids=["selector", "reward"])
def test_training_lowers_the_loss_and_is_reproducible(base: Base, task) -> None:
    made = examples(base, task)
    ends = []
    for _ in range(2):
        set_adapter(base, initial_adapter(base, 0))
        before = evaluate(base, task, made)["loss"]
        train(base, task, made, replace(CFG, local_steps=12), seed=1)
        assert evaluate(base, task, made)["loss"] < before - 0.1
        ends.append(get_adapter(base))
    assert all(t.equal(ends[1][name]) for name, t in ends[0].items())


@pytest.mark.parametrize("options", [{"label_smoothing": 0.5}, {"antisymmetry": -1.0}])
def test_options_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match=r"task\."):
        Selector(**options)
    with pytest.raises(ConfigError, match=r"task\.label-smoothing"):
        Reward(label_smoothing=-0.1)
