"""PDPO's objectives: the reconstruction's vectors, hand numbers, gradients, what is refused."""

import math
from dataclasses import replace

import pytest
import torch

from core.errors import ConfigError
from tasks.base import Batch, Example, Parts
from tasks.dpo import DPO
from tasks.pdpo import PDPO, pdpo_loss
from tasks.tokens.encode import Encoder
from tests import tiny
from tests.vectors import FEDBISCUIT


def batch(values: dict, *, explicit: bool = True) -> Batch:
    def flat(chosen: str, rejected: str) -> torch.Tensor:
        pairs = list(zip(values[chosen], values[rejected], strict=True))
        return torch.tensor(pairs, dtype=torch.float64).flatten()

    logps = flat("policy_chosen", "policy_rejected")
    rewards = (
        flat("explicit_reward_chosen", "explicit_reward_rejected").requires_grad_() if explicit else None
    )
    examples = (Example((1,), ((2,), (3,))),) * (len(logps) // 2)
    refs, tokens = flat("ref_chosen", "ref_rejected"), torch.ones(len(logps))
    return Batch(examples, logps.requires_grad_(), refs, tokens, (), explicit=rewards)


HAND = {
    "policy_chosen": [-10.0, -3.0],
    "policy_rejected": [-12.0, -3.0],
    "ref_chosen": [-11.0, -3.0],
    "ref_rejected": [-11.0, -5.0],
    "explicit_reward_chosen": [5.0, 0.0],
    "explicit_reward_rejected": [0.0, 0.5],
}


def test_published_vectors() -> None:
    """Eleven printed digits."""
    vector = FEDBISCUIT["fedpdpo_reconstruction"]
    margin = {"objective": "margin", "kappa": 0.3, "explicit_weight": 1.0}
    wanted = [(margin, "V4_L_adaptive_margin_kappa0.3")]
    for weight in (0.1, 0.5, 1.0):
        wanted.append(({"explicit_weight": weight}, f"V2_L_sum_lambda{weight}"))
        composed = {"objective": "composed", "explicit_weight": weight}
        wanted.append((composed, f"V1_L_pdpo_additive_margin_lambda{weight}"))
    for options, name in wanted:
        output = PDPO(beta=vector["beta"], **options).loss(batch(vector))
        loss, metrics = output.loss, output.metrics
        assert loss.item() == pytest.approx(vector[name], abs=1e-11), name
    assert metrics["explicit/margins"] == pytest.approx(sum(vector["explicit_margin"]) / 3)
    assert metrics["explicit/accuracies"] == pytest.approx(2 / 3)
    assert metrics["rewards/accuracies"] == pytest.approx(2 / 3)
    alone = PDPO(beta=vector["beta"], parts="bottleneck,head").loss(batch(vector, explicit=False)).loss
    assert alone.item() == pytest.approx(vector["L_dpo"], abs=1e-11)


def test_objectives_by_hand() -> None:
    """beta 0.5: D_im = 1, -1; D_ex = 5, clipped to 3, and -0.5."""

    def s(x: float) -> float:
        return math.log1p(math.exp(-x))

    im, ex = torch.tensor([1.0, -1.0], dtype=torch.float64), torch.tensor([5.0, -0.5], dtype=torch.float64)
    rows = {
        "separate": [s(1) + 0.5 * s(5), s(-1) + 0.5 * s(-0.5)],
        "composed": [s(1 + 2.5), s(-1 - 0.25)],
        "margin": [s(1 - 0.6) + 0.5 * s(5), s(-1 + 0.1) + 0.5 * s(-0.5)],
    }
    for objective, want in rows.items():
        got = pdpo_loss(im, ex, objective=objective, weight=0.5, kappa=0.2)
        assert got.tolist() == pytest.approx(want), objective
        options = {"kappa": 0.2} if objective == "margin" else {}
        loss = PDPO(beta=0.5, objective=objective, explicit_weight=0.5, **options).loss(batch(HAND)).loss
        assert loss.item() == pytest.approx(sum(want) / 2), objective


def test_the_explicit_reward_in_a_margin_gets_no_gradient() -> None:
    """Its gradient is that of its own likelihood, as for `separate`; composed scales both gradients by one factor."""
    gradients = {}
    for objective in ("separate", "margin", "composed"):
        pairs = batch(HAND)
        PDPO(beta=0.1, objective=objective, explicit_weight=1.0).loss(pairs).loss.backward()
        assert pairs.explicit is not None
        gradients[objective] = pairs.explicit.grad, pairs.logps.grad
    assert torch.equal(gradients["separate"][0], gradients["margin"][0])
    assert not torch.equal(gradients["separate"][1], gradients["margin"][1])
    torch.testing.assert_close(gradients["composed"][0] * 0.1, gradients["composed"][1])


def test_without_a_reward_head_pdpo_equals_dpo_exactly() -> None:
    plain, pairs = batch(HAND, explicit=False), batch(HAND, explicit=False)
    output = DPO().loss(plain)
    want, metrics = output.loss, output.metrics
    output = PDPO(parts="bottleneck,head").loss(pairs)
    got, got_metrics = output.loss, output.metrics
    want.backward()
    got.backward()
    assert torch.equal(got, want)
    assert torch.equal(pairs.logps.grad, plain.logps.grad)
    assert got_metrics == metrics


def test_nll_is_the_mean_over_pairs_of_the_chosen_answers_nll_per_token() -> None:
    """Chosen: -10 over 4 tokens and -3 over 2: 2 nats on average."""
    pairs = replace(batch(HAND), tokens=torch.tensor([4, 1, 2, 1]))
    output = PDPO(nll_weight=0.1).loss(pairs)
    loss, metrics = output.loss, output.metrics
    assert metrics["nll"] == pytest.approx(2.0)
    assert loss.item() == pytest.approx(PDPO().loss(pairs).loss.item() + 0.2)


@pytest.mark.parametrize("objective", ["separate", "composed", "margin"])
@pytest.mark.parametrize("parts", ["bottleneck,head,reward", "bottleneck,head"])
def test_an_uncertain_pair_has_the_expected_loss_over_its_orders(objective: str, parts: str) -> None:
    """0.8 of the pair and 0.2 of the reversed pair, including the likelihood of the better answer."""
    rewarded = "reward" in parts
    options = {"objective": objective} if rewarded else {}
    task = PDPO(nll_weight=0.1, parts=parts, **options)
    reversed_pairs = {name.replace("chosen", "#").replace("rejected", "chosen").replace("#", "rejected"): v
              for name, v in HAND.items()}  # fmt: skip
    plain, opposite = batch(HAND, explicit=rewarded), batch(reversed_pairs, explicit=rewarded)
    right, wrong = task.loss(plain), task.loss(opposite)
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "label_confidence": 0.8}
    (example,) = task.examples([row], Encoder(tiny.tokenizer(), "none", 9))
    output = task.loss(replace(plain, examples=(example, example)))
    loss, metrics = output.loss, output.metrics
    assert loss.item() == pytest.approx(0.8 * right.loss.item() + 0.2 * wrong.loss.item())
    assert metrics["nll"] == pytest.approx(0.8 * right.metrics["nll"] + 0.2 * wrong.metrics["nll"])
    half = task.loss(replace(plain, examples=(example, plain.examples[0]))).loss  # one of them certain
    assert half.item() != pytest.approx(loss.item())


def test_a_reward_head_of_zeros_has_no_accuracy() -> None:
    zeros = {**HAND, "explicit_reward_chosen": [0.0, 0.0], "explicit_reward_rejected": [0.0, 0.0]}
    assert "explicit/accuracies" not in PDPO().loss(batch(zeros)).metrics
    assert PDPO().loss(batch(HAND)).metrics["explicit/accuracies"] == 0.5


def test_alternating_trains_private_parts_for_half_of_the_steps() -> None:
    first, second = PDPO(order="alternating").stages(5)
    assert (first.steps, second.steps) == (2, 3)
    for stage, private in ((first, True), (second, False)):
        assert stage.trains("private.head.left") is private
        assert stage.trains("l.lora_A.weight") is not private
    assert [stage.steps for stage in PDPO(order="alternating").stages(1)] == [1, 1]
    (joint,) = PDPO().stages(5)
    assert (joint.steps, joint.trains("private.head.left"), joint.trains("l.lora_A.weight")) == (
        5,
        True,
        True,
    )


def test_private_parts_and_their_rates() -> None:
    assert PDPO().private_parts == Parts("residual", 0, True, 16, True)
    assert PDPO(parts="head", head_rank=0).private_parts == Parts(head=True)
    assert PDPO(parts="bottleneck", mix="gate", bottleneck_width=8).private_parts == Parts("gate", 8, rank=16)
    assert DPO().private_parts == Parts()
    assert [PDPO().rate(part) for part in ("bottleneck", "head", "reward")] == [0.3, 0.3, 3.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "sum"}, "task.objective must be one of separate | margin | composed, got 'sum'"),
        ({"parts": "heads"}, "task.parts must be one or more of bottleneck, head, reward, got 'heads'"),
        ({"parts": ""}, "task.parts must be one or more"),
        ({"parts": "head,head"}, "task.parts must be one or more"),
        ({"reward_rate": 0.0}, "task.reward-rate must be above 0"),
        ({"explicit_weight": -1.0}, "task.explicit-weight must not be negative"),
        ({"kappa": 0.5}, "task.kappa = 0.5 has no effect with task.objective = 'separate'"),
        ({"parts": "head", "objective": "margin"}, "task.objective = 'margin' has no effect with task.parts"),
        ({"parts": "reward", "mix": "gate"}, "task.mix = 'gate' has no effect"),
        ({"parts": "reward", "head_rank": 4}, "task.head-rank = 4 has no effect"),
    ],
)
def test_invalid_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PDPO(**options)
    assert message in str(caught.value)
