"""The benchmark's rules of truncation equal those of Accord's encoder and of TRL's collator."""

import pytest
from trl.trainer.dpo_trainer import DataCollatorForPreference

from benchmarks.truncation import accord, keep_end, keep_start, table
from tasks.base import Example
from tasks.tokens.encode import Encoder
from tests import tiny

SIZES = [(3, 4, 9), (12, 5, 2), (25, 3, 8), (4, 40, 6), (19, 1, 1)]  # prompt, chosen, rejected
LENGTH = 20


@pytest.mark.parametrize("sizes", SIZES)
def test_the_rules_equal_encoder_and_collator(sizes: tuple[int, int, int]) -> None:
    """The numbers of prompt and answer tokens of each answer."""
    prompt, chosen, rejected = ("x" * size for size in sizes)
    whole, cut = (
        Encoder(tiny.tokenizer(), "none", n).example(prompt, (chosen, rejected)) for n in (999, LENGTH)
    )
    assert whole is not None
    assert cut is not None
    assert accord(whole, LENGTH) == [(len(cut.prompt), len(answer)) for answer in cut.completions]
    if len(whole.prompt) < LENGTH:
        assert keep_start(whole, LENGTH) == collated(whole, "keep_start")
    else:
        assert keep_start(whole, LENGTH) == [(0, 0)] * 2
    assert keep_end(whole, LENGTH) == collated(whole, "keep_end")


def collated(example: Example, mode: str) -> list[tuple[int, int]]:
    ids = {"chosen_ids": list(example.completions[0]), "rejected_ids": list(example.completions[1])}
    collate = DataCollatorForPreference(pad_token_id=0, max_length=LENGTH, truncation_mode=mode)
    batch = collate([{"prompt_ids": list(example.prompt), **ids}])
    whole, answers = batch["attention_mask"].sum(1), batch["completion_mask"].sum(1)
    return [(int(w - a), int(a)) for w, a in zip(whole, answers, strict=True)]


def test_the_table_counts_the_remaining_tokens() -> None:
    """Prompts 5 and 25, answers 5 and 5 twice, at 20: Accord keeps 5 + 15 of 30 prompt tokens and every answer; TRL
    loses the second pair."""
    examples = [Example((1,) * n, ((2,) * 5, (3,) * 5)) for n in (5, 25)]
    assert table(examples, [20])[2:] == [
        "| 20 | 50.0% | Accord | 0.0% | 66.7% | 100.0% |",
        "| 20 | 50.0% | TRL keep_start | 50.0% | 16.7% | 50.0% |",
        "| 20 | 50.0% | TRL keep_end | 0.0% | 66.7% | 100.0% |",
    ]
