"""The losses of DPO: published vectors, values by hand, and signs."""

import math
from dataclasses import replace

import pytest
import torch

from core.errors import ConfigError
from tasks.base import Batch, Example
from tasks.dpo import DPO, dpo_loss
from tasks.tokens.encode import Encoder
from tests import tiny
from tests.vectors import OPENFEDLLM


def batch(chosen, rejected, ref_chosen, ref_rejected, tokens=None) -> Batch:
    """Pairs of summed log-probabilities, float64, with gradient."""
    logps = torch.tensor(
        [[c, r] for c, r in zip(chosen, rejected, strict=True)], dtype=torch.float64
    ).flatten()
    refs = torch.tensor(
        [[c, r] for c, r in zip(ref_chosen, ref_rejected, strict=True)], dtype=torch.float64
    ).flatten()
    examples = tuple(Example((1,), ((2,), (3,))) for _ in chosen)
    counts = torch.tensor(tokens or [1] * len(logps))
    return Batch(
        examples, logps.requires_grad_(), refs, counts, tuple((2 * i, 2 * i + 1) for i in range(len(chosen)))
    )


def test_the_published_vectors() -> None:
    """Values, rewards and gradients of `dpo_loss`, to 1e-12; the tie of the last row counts as wrong."""
    vector = OPENFEDLLM["dpo_loss"]
    inputs, want = vector["inputs"], vector["outputs"]
    pairs = batch(inputs["pc"], inputs["pr"], inputs["rc"], inputs["rr"])
    output = DPO(beta=inputs["beta"]).loss(pairs)
    loss, metrics = output.loss, output.metrics
    loss.backward()
    assert loss.item() == pytest.approx(want["mean"], abs=1e-12)
    assert pairs.logps.grad is not None
    gradient = pairs.logps.grad.view(-1, 2)
    assert gradient[:, 0].tolist() == pytest.approx(want["grad_chosen_logps"], abs=1e-12)
    assert gradient[:, 1].tolist() == pytest.approx(want["grad_rejected_logps"], abs=1e-12)
    assert metrics["rewards/chosen"] == pytest.approx(sum(want["chosen_rewards"]) / 3, abs=1e-12)
    assert metrics["rewards/rejected"] == pytest.approx(sum(want["rejected_rewards"]) / 3, abs=1e-12)
    assert metrics["rewards/accuracies"] == pytest.approx(want["reward_accuracy"])
    margins = [
        (a - b) - (c - d) for a, b, c, d in zip(*(inputs[k] for k in ("pc", "rc", "pr", "rr")), strict=True)
    ]
    losses = dpo_loss(torch.tensor(margins, dtype=torch.float64), beta=inputs["beta"])
    assert losses.tolist() == pytest.approx(want["losses"], abs=1e-12)


def test_losses_by_hand() -> None:
    """m = 4, -2 with beta 0.25: beta m = 1, -0.5."""
    m = torch.tensor([4.0, -2.0], dtype=torch.float64)
    assert dpo_loss(m, beta=0.25).tolist() == pytest.approx(
        [math.log(1 + math.exp(-1)), math.log(1 + math.exp(0.5))]
    )
    assert dpo_loss(m, beta=0.25, loss_type="hinge").tolist() == [0.0, 1.5]
    assert dpo_loss(m, beta=0.25, loss_type="ipo").tolist() == [4.0, 16.0]  # (4 - 2)^2, (-2 - 2)^2
    smooth = dpo_loss(m, beta=0.25, label_smoothing=0.1).tolist()
    assert smooth[0] == pytest.approx(0.9 * math.log(1 + math.exp(-1)) + 0.1 * math.log(1 + math.exp(1)))
    assert dpo_loss(m, beta=0.25, label_smoothing=0.0).tolist() == dpo_loss(m, beta=0.25).tolist()


def test_ipo_uses_ratios_per_token() -> None:
    """Ratios 6 over 3 tokens and 2 over 4: margin 2 - 0.5 = 1.5; beta 0.5: (1.5 - 1)^2. Rewards stay sums."""
    output = DPO(beta=0.5, loss_type="ipo").loss(batch([-4], [-8], [-10], [-10], tokens=[3, 4]))
    loss, metrics = output.loss, output.metrics
    assert loss.item() == pytest.approx(0.25)
    assert metrics["rewards/margins"] == pytest.approx(0.5 * (6 - 2))


def test_a_pair_may_have_a_confidence() -> None:
    """A confidence of 0.9 is a smoothing of 0.1 for that pair; the loss is least where sigmoid(beta m) = 0.9."""
    pairs = batch([-1.0, -1.0], [-3.0, -3.0], [-2.0, -2.0], [-2.0, -2.0])
    unsure = replace(pairs, examples=(replace(pairs.examples[0], confidence=0.9), pairs.examples[1]))
    sure, smoothed = DPO().loss(pairs).loss.item(), DPO(label_smoothing=0.1).loss(pairs).loss.item()
    assert DPO().loss(unsure).loss.item() == pytest.approx((sure + smoothed) / 2)
    margins = torch.tensor([math.log(9) / 0.1], requires_grad=True)
    dpo_loss(margins, beta=0.1, label_smoothing=torch.tensor([0.1])).sum().backward()
    assert margins.grad is not None
    assert margins.grad.item() == pytest.approx(0.0, abs=1e-7)


def test_a_margin_of_zero_is_no_preference() -> None:
    metrics = DPO(beta=0.1).loss(batch([-1.0, -2.0], [-3.0, -1.0], [-1.0, -2.0], [-3.0, -1.0])).metrics
    assert metrics["rewards/accuracies"] == 0.0


@pytest.mark.parametrize(
    ("loss_type", "want"),
    [
        # beta 0.5, m = 4: beta m = 2 and -2; ipo: (4 - 1)^2 and (-4 - 1)^2
        ("sigmoid", 0.7 * math.log1p(math.exp(-2)) + 0.3 * math.log1p(math.exp(2))),
        ("ipo", 0.7 * 9 + 0.3 * 25),
        ("hinge", 0.7 * 0 + 0.3 * 3),
    ],
)
def test_the_confidence_of_a_row_affects_every_loss(loss_type: str, want: float) -> None:
    """The expected loss over the two orders: a pair with confidence 0.3 equals the reversed pair with 0.7."""
    encode, task = Encoder(tiny.tokenizer(), "none", 9), DPO(beta=0.5, loss_type=loss_type)
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "label_confidence": 0.7}
    reversed_row = {"prompt": "a", "chosen": "c", "rejected": "b", "label_confidence": 0.3}
    (unsure,), (opposite,) = task.examples([row], encode), task.examples([reversed_row], encode)
    pairs = batch([-1.0], [-5.0], [-2.0], [-2.0])
    assert task.loss(replace(pairs, examples=(unsure,))).loss.item() == pytest.approx(want)
    reversed_pair = batch([-5.0], [-1.0], [-2.0], [-2.0])
    assert task.loss(replace(reversed_pair, examples=(opposite,))).loss.item() == pytest.approx(want)


def test_ipo_of_an_uncertain_pair_is_least_at_its_margin() -> None:
    """(2c - 1) / (2 beta), the target of Eq. 17 for a preference that is c."""
    m = torch.tensor([(2 * 0.7 - 1) / (2 * 0.5)], dtype=torch.float64, requires_grad=True)
    dpo_loss(
        m, beta=0.5, loss_type="ipo", label_smoothing=torch.tensor([0.3], dtype=torch.float64)
    ).backward()
    assert m.grad is not None
    assert m.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_the_smoothed_loss_is_least_at_its_confidence() -> None:
    """d/dm = 0 where sigmoid(beta m) = 1 - s."""
    m = torch.tensor([math.log(0.8 / 0.2) / 0.5], dtype=torch.float64, requires_grad=True)
    dpo_loss(m, beta=0.5, label_smoothing=0.2).sum().backward()
    assert m.grad is not None
    assert m.grad.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
        {"loss_type": "apo"},
        {"label_smoothing": 0.5},
        {"label_smoothing": 0.1, "loss_type": "ipo"},
    ],
)
def test_options_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match=r"task\."):
        DPO(**options)


def test_rows_become_pairs() -> None:
    encode = Encoder(tiny.tokenizer(), "none", 6, "skip")
    rows = [{"prompt": p, "chosen": "b", "rejected": "cc"} for p in ("a", "too long")]
    (example,) = DPO().examples(rows, encode)
    assert [len(c) for c in example.completions] == [2, 3]
    assert encode.skipped == {"too long": 1}
    assert DPO().row_counts([example]) == DPO().pooled_options({}) == {}
