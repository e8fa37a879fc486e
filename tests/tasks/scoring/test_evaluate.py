"""Metrics of held-out rows: computed by hand, against full logits, and absent without data."""

import math

import pytest
import torch

from core.sections import LoraConfig, ModelConfig
from tasks.base import Example
from tasks.dpo import DPO
from tasks.forward.modes import reference
from tasks.forward.setup import load_base
from tasks.kto import KTO
from tasks.model.adapter import initial_adapter, set_adapter
from tasks.model.base import Base
from tasks.scoring.evaluate import (
    Scores,
    evaluate,
    exact_kl,
    heldout_examples,
    pair_metrics,
    unpaired_metrics,
)
from tasks.sft import SFT
from tasks.tokens.encode import Encoder
from tests import tiny

PAIRS = [Example((1, *range(5, 9 + i)), ((20, 21, 30 + i, 2), (40 + i, 2))) for i in range(5)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tiny.folder(tmp_path_factory.mktemp("evaluate") / "model")
    return load_base(ModelConfig(name=str(folder)), LoraConfig(r=4))


def scores(logps, refs, tokens) -> Scores:
    return Scores(*(torch.tensor(x, dtype=torch.float64) for x in (logps, refs, tokens)))


def test_pair_metrics_computed_by_hand() -> None:
    """Ratios (2, -1), (0, 0), (1, 3); beta 0.1. Strictly larger rewards: the first pair only."""
    metrics = pair_metrics(
        scores([[-10, -15], [-4, -4], [-6, -5]], [[-12, -14], [-4, -4], [-7, -8]], [[3, 5], [4, 4], [6, 2]]),
        0.1,
    )
    assert metrics == pytest.approx(
        {
            "rewards/chosen": 0.1,
            "rewards/rejected": 0.2 / 3,
            "rewards/margins": 0.1 / 3,
            "rewards/accuracies": 1 / 3,
            "logps/chosen": -20 / 3,
            "logps/rejected": -8.0,
            "logps/accuracies": 1 / 3,  # -10 > -15
            "length/accuracies": 0.5,  # shorter, a tie, longer
        }
    )


def test_equal_policy_and_reference_have_no_reward_accuracy() -> None:
    same = [[-1.0, -2.0]]
    assert "rewards/accuracies" not in pair_metrics(scores(same, same, [[1, 1]]), 0.1)
    thumbs = unpaired_metrics(scores([[-1.0], [-2.0]], [[-1.0], [-2.0]], [[1], [1]]), [True, False], 0.1)
    assert "rewards/accuracies" not in thumbs


def test_thumbs_are_compared_across_classes() -> None:
    """Ratios up 3, 1; down 2, 1: of four pairs 3>2, 3>1, 1<2, 1=1 -> 2.5 of 4."""
    metrics = unpaired_metrics(
        scores([[-1], [-3], [-2], [-3]], [[-4]] * 4, [[1]] * 4), [True, True, False, False], 0.5
    )
    assert metrics["rewards/accuracies"] == 2.5 / 4
    assert metrics["rewards/margins"] == pytest.approx(0.5 * (2.0 - 1.5))
    alone = unpaired_metrics(scores([[-1]], [[-4]], [[1]]), [True], 0.5)
    assert alone.keys() == {"rewards/chosen", "logps/chosen"}


def test_the_initial_adapter_scores_as_the_base(base: Base) -> None:
    set_adapter(base, initial_adapter(base, 0))
    metrics = evaluate(base, DPO(), PAIRS)
    assert metrics["examples"] == 5
    assert metrics["kl"] == metrics["rewards/margins"] == 0.0
    assert "rewards/accuracies" not in metrics
    assert 0 <= metrics["logps/accuracies"] <= 1


def test_scores_and_kl_equal_those_of_full_logits(base: Base) -> None:
    """From the model's own logits, sequence by sequence."""
    set_adapter(base, tiny.random_adapter(base))
    metrics = evaluate(base, DPO(beta=0.2), PAIRS)

    def log_softmax(example: Example, which: int) -> torch.Tensor:
        ids = torch.tensor([[*example.prompt, *example.completions[which]]])
        return base.model(input_ids=ids).logits[0, len(example.prompt) - 1 : -1].double().log_softmax(-1)

    kl, positions, rewards = 0.0, 0, []
    for example in PAIRS:
        with torch.no_grad():
            policy = [log_softmax(example, i) for i in (0, 1)]
        with reference(base):
            frozen = [log_softmax(example, i) for i in (0, 1)]
        kl += float((policy[0].exp() * (policy[0] - frozen[0])).sum())
        positions += len(policy[0])
        targets = [torch.tensor(c)[:, None] for c in example.completions]
        rewards.append(
            [float((p - f).gather(1, t).sum()) * 0.2 for p, f, t in zip(policy, frozen, targets, strict=True)]
        )
    assert metrics["kl"] == pytest.approx(kl / positions, rel=1e-4)
    assert metrics["kl"] > 0
    assert exact_kl(base, PAIRS[:2]) != metrics["kl"]
    chosen, rejected = zip(*rewards, strict=True)
    assert metrics["rewards/chosen"] == pytest.approx(sum(chosen) / 5, abs=1e-5)
    assert metrics["rewards/rejected"] == pytest.approx(sum(rejected) / 5, abs=1e-5)
    assert metrics["rewards/accuracies"] == sum(c > r for c, r in rewards) / 5


def test_plain_completions_are_scored_by_token(base: Base) -> None:
    set_adapter(base, tiny.random_adapter(base))
    demos = [Example(e.prompt, e.completions[:1]) for e in PAIRS]
    metrics = evaluate(base, SFT(), demos)
    loss, right, count = 0.0, 0, 0
    for e in demos:
        ids = torch.tensor([[*e.prompt, *e.completions[0]]])
        with torch.no_grad():
            logits = base.model(input_ids=ids).logits[0, len(e.prompt) - 1 : -1]
        target = torch.tensor(e.completions[0])
        loss += float(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))
        right += int((logits.argmax(-1) == target).sum())
        count += len(target)
    assert metrics == pytest.approx(
        {"examples": 5, "loss": loss / count, "mean_token_accuracy": right / count}, rel=1e-5
    )
    assert not math.isnan(metrics["loss"])


def test_rows_of_any_view_become_examples(base: Base) -> None:
    encode = Encoder(base.tokenizer, "none", 64)
    pair, thumb, demo = heldout_examples(
        [
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            {"prompt": "a", "completion": "b", "label": False},
            {"prompt": "a", "completion": "b"},
        ],
        encode,
        DPO(),
    )
    assert (len(pair.completions), thumb.label, demo.label) == (2, False, None)
    assert evaluate(base, KTO(), [thumb]).keys() == {"examples", "rewards/rejected", "logps/rejected"}
    assert evaluate(base, KTO(), []) == {}
