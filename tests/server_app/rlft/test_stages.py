"""Stages that run prompt by prompt: a truncated file is completed to the same bytes, and lines are not recomputed."""

import pytest
import torch

from core.sections import LoraConfig, ModelConfig
from server_app.rlft.stages import greedy_answers, sample_answers, score_answers
from tasks.forward.setup import load_base
from tasks.scoring.ensemble import SelectorEnsemble
from tasks.scoring.generate import Sampling, TextGenerator
from tasks.selector import Selector
from tasks.tokens.encode import Encoder
from tests import tiny

PROMPTS = ["One?", "Two?", "Three?", "Four?"]
HOW = Sampling(2, 1.0, 1.0, 6)
LONG = "x" * 400


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tiny.folder(tmp_path_factory.mktemp("stages") / "m")
    return load_base(ModelConfig(name=str(folder)), LoraConfig(r=4))


def stages(base):
    generator = TextGenerator(base, Encoder(base.tokenizer, "none", 100), frozen=True, new_tokens=6)
    encode = Encoder(base.tokenizer, "none", 420)
    ensemble = SelectorEnsemble(
        base, Selector(), encode, {"c0": tiny.random_adapter(base)}, {"c0": {}}, (1.0,)
    )
    questions = [(p, ["yes", "no", LONG if p == "Two?" else "so"]) for p in PROMPTS]
    return {
        "sampled": lambda path: sample_answers(path, PROMPTS, generator, HOW, seed=3, turn=0),
        "greedy": lambda path: greedy_answers(path, PROMPTS, generator),
        "scored": lambda path: [s.odds for s in score_answers(path, questions, ensemble)],
    }


@pytest.mark.parametrize("stage", ["sampled", "greedy", "scored"])
def test_a_file_truncated_anywhere_is_completed_to_the_same_bytes(base, stage, tmp_path):
    make, whole = stages(base)[stage], tmp_path / "whole.jsonl"
    want = make(whole)
    text = whole.read_bytes()
    assert text.count(b"\n") == len(PROMPTS)
    for size in (0, 1, text.index(b"\n"), text.index(b"\n") + 1, len(text) - 1, len(text)):
        part = tmp_path / f"{size}.jsonl"
        part.write_bytes(text[:size])
        results = make(part)
        assert part.read_bytes() == text
        for a, b in zip(results, want, strict=True):
            assert torch.equal(a.nan_to_num(9), b.nan_to_num(9)) if stage == "scored" else a == b


def test_a_complete_line_is_not_recomputed(base, tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"prompt": "One?", "completions": ["told", "before"]}\n')
    assert stages(base)["sampled"](path)[0] == ["told", "before"]


def test_a_comparison_without_room_has_no_number(base, tmp_path):
    odds = stages(base)["scored"](tmp_path / "scores.jsonl")
    assert odds[1].isnan().sum() == 4
    assert not odds[0].isnan().any()
    assert "NaN" not in (tmp_path / "scores.jsonl").read_text()
