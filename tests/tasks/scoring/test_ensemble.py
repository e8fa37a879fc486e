"""The ensemble equals single comparisons in both orders, for selectors and for reward models."""

import pytest
import torch

from core.sections import LoraConfig, ModelConfig
from tasks.forward.setup import load_base
from tasks.model.adapter import set_adapter
from tasks.model.base import Base
from tasks.reward import Reward
from tasks.scoring.ensemble import SelectorEnsemble
from tasks.scoring.evaluate import choice_batch
from tasks.selector import Selector
from tasks.tokens.choice import margins
from tasks.tokens.encode import Encoder
from tests import tiny
from tests.vectors import FEDBISCUIT

ANSWERS = ["Yes", "No, never", "Perhaps it is", "Yes", "Why not?"]
TASKS = pytest.mark.parametrize("task", [Selector(), Reward()], ids=["selector", "reward"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(
        ModelConfig(name=str(tiny.folder(tmp_path_factory.mktemp("ensemble") / "m"))), LoraConfig(r=4)
    )


def ensemble_of(base: Base, task, *, length: int = 400) -> SelectorEnsemble:
    trees = {name: tiny.random_adapter(base, seed, 1.0) for seed, name in enumerate(("c0", "c1"), 1)}
    return SelectorEnsemble(
        base, task, Encoder(base.tokenizer, "auto", length), trees, {name: {} for name in trees}, (1.0, 1.0)
    )


@TASKS
def test_every_pair_of_answers_scores_as_a_single_comparison(base: Base, task) -> None:
    """For each selector; a comparison is half the difference of its two orders, with rewards the difference."""
    ensemble = ensemble_of(base, task)
    (scores,) = ensemble.scores([("Is it?", ANSWERS)])
    assert scores.odds.shape == (2, 5, 5)
    assert scores.odds.equal(-scores.odds.transpose(1, 2))
    assert scores.odds[:, 0].equal(scores.odds[:, 3]), "the same answer twice"
    same = 0  # comparisons in which both orders agree
    for u, tree in enumerate(ensemble.selectors.values()):
        set_adapter(base, tree)
        for i in range(5):
            for j in range(5):
                if ANSWERS[i] == ANSWERS[j]:
                    assert scores.odds[u, i, j] == 0
                    continue
                row = {"prompt": "Is it?", "chosen": ANSWERS[i], "rejected": ANSWERS[j]}
                ((a, b),) = margins(choice_batch(base, task.examples([row], ensemble.encode))).tolist()
                assert scores.odds[u, i, j].item() == pytest.approx(task.reward_scale * (a - b), abs=1e-4)
                same += (
                    i < j and ANSWERS[i] not in ANSWERS[:i] and ANSWERS[j] not in ANSWERS[:j] and a * b < 0
                )
    assert not scores.odds[0].allclose(scores.odds[1])
    if isinstance(task, Reward):
        assert scores.consistent == (0, 0)
        s = scores.odds
        torch.testing.assert_close(s[:, 0, 1] + s[:, 1, 2], s[:, 0, 2], rtol=0, atol=1e-4)
    else:
        assert scores.consistent == (same, 2 * 6), "four different answers, six comparisons, two selectors"
        assert same > 0


@TASKS
def test_swapping_answers_negates_their_score(base: Base, task) -> None:
    (scores,) = ensemble_of(base, task).scores([("Is it?", ["Yes", "No"])])
    (swapped,) = ensemble_of(base, task).scores([("Is it?", ["No", "Yes"])])
    torch.testing.assert_close(scores.odds[:, 0, 1], -swapped.odds[:, 0, 1], rtol=0, atol=1e-5)


@TASKS
def test_the_scores_of_a_prompt_do_not_depend_on_other_prompts(base: Base, task) -> None:
    prompts = [("Is it?", ANSWERS), ("What is it?", ["A", "B", "C"]), ("Who?", ["I", "You"])]
    together = ensemble_of(base, task).scores(prompts)
    for prompt, scores in zip(prompts, together, strict=True):
        (alone,) = ensemble_of(base, task).scores([prompt])
        assert alone.odds.equal(scores.odds)


def test_a_pair_that_is_too_long_does_not_shift_other_labels(base: Base) -> None:
    """Four pairs of which the second is too long: the others keep their labels, and it has none."""
    correct = FEDBISCUIT["bug_label_misalignment_on_truncation"]["correct"]
    prompts = [(f"Question {i}?", [f"One {i}", f"Two {i}"]) for i in range(len(correct))]
    long = [prompts[0], (prompts[1][0], ["x" * 600, "y"]), *prompts[2:]]
    fair, cut = (ensemble_of(base, Selector(), length=420).scores(each) for each in (prompts, long))
    assert cut[1].odds[:, 0, 1].isnan().all()
    for i in (0, 2, 3):
        assert cut[i].odds.equal(fair[i].odds)
