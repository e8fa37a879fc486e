"""The loss of SFT is a mean over tokens."""

import pytest
import torch

from tasks.base import Batch, Example
from tasks.sft import SFT, sft_loss
from tasks.tokens.encode import Encoder
from tests import tiny


def test_the_loss_is_a_mean_over_tokens_not_over_rows() -> None:
    """-(-6 - 2) / (3 + 1) = 2; the mean of rows would be (2 + 2) / 2 = 2 as well, so a second case: 9 / 4."""
    assert sft_loss(torch.tensor([-6.0, -2.0]), torch.tensor([3, 1])).item() == 2.0
    assert sft_loss(torch.tensor([-3.0, -6.0]), torch.tensor([3, 1])).item() == 9 / 4


def test_the_task_uses_it() -> None:
    logps = torch.tensor([-3.0, -6.0], requires_grad=True)
    examples = tuple(Example((1,), ((2,),)) for _ in range(2))
    hits = torch.tensor([1, 0])
    batch = Batch(examples, logps, None, torch.tensor([3, 1]), ((0,), (1,)), hits=hits)
    output = SFT().loss(batch)
    loss, metrics = output.loss, output.metrics
    loss.backward()
    assert loss.item() == 9 / 4
    assert metrics == {"mean_token_accuracy": 1 / 4}
    assert logps.grad is not None
    assert logps.grad.tolist() == [-0.25, -0.25]


def test_rows_become_single_completions() -> None:
    (example,) = SFT().examples([{"prompt": "a", "completion": "bc"}], Encoder(tiny.tokenizer(), "none", 9))
    assert (len(example.prompt), [len(c) for c in example.completions], example.label) == (2, [3], None)
    assert SFT().prepare([example], seed=0, max_length=9) == [example]
    assert SFT().reward_scale == pytest.approx(1.0)
