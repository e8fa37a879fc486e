"""The jury against one comparison at a time, in both orders, for selectors and for reward models."""

import pytest
import torch

from core.sections import LoraConfig, ModelConfig
from tasks.forward.setup import load_base
from tasks.model.adapter import set_adapter
from tasks.model.base import Base
from tasks.reward import Reward
from tasks.scoring.evaluate import choice_batch
from tasks.scoring.jury import Jury
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
        ModelConfig(name=str(tiny.folder(tmp_path_factory.mktemp("jury") / "m"))), LoraConfig(r=4)
    )


def jury(base: Base, task, *, length: int = 400) -> Jury:
    trees = {name: tiny.random_adapter(base, seed, 1.0) for seed, name in enumerate(("c0", "c1"), 1)}
    return Jury(
        base, task, Encoder(base.tokenizer, "auto", length), trees, {name: {} for name in trees}, (1.0, 1.0)
    )


@TASKS
def test_every_two_answers_are_compared_as_they_would_be_alone(base: Base, task) -> None:
    """By each selector; a comparison is half the difference of its two orders, a reward's the difference."""
    panel = jury(base, task)
    (scores,) = panel.scores([("Is it?", ANSWERS)])
    assert scores.odds.shape == (2, 5, 5)
    assert scores.odds.equal(-scores.odds.transpose(1, 2))
    assert scores.odds[:, 0].equal(scores.odds[:, 3]), "the same words twice"
    same = 0  # of the answers to the comparisons, in both orders
    for u, tree in enumerate(panel.selectors.values()):
        set_adapter(base, tree)
        for i in range(5):
            for j in range(5):
                if ANSWERS[i] == ANSWERS[j]:
                    assert scores.odds[u, i, j] == 0
                    continue
                row = {"prompt": "Is it?", "chosen": ANSWERS[i], "rejected": ANSWERS[j]}
                ((a, b),) = margins(choice_batch(base, task.examples([row], panel.encode))).tolist()
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
def test_swapping_answers_turns_their_score_around(base: Base, task) -> None:
    (one,) = jury(base, task).scores([("Is it?", ["Yes", "No"])])
    (two,) = jury(base, task).scores([("Is it?", ["No", "Yes"])])
    torch.testing.assert_close(one.odds[:, 0, 1], -two.odds[:, 0, 1], rtol=0, atol=1e-5)


@TASKS
def test_a_prompt_has_the_same_bytes_whatever_else_is_asked(base: Base, task) -> None:
    asked = [("Is it?", ANSWERS), ("What is it?", ["A", "B", "C"]), ("Who?", ["I", "You"])]
    together = jury(base, task).scores(asked)
    for one, scores in zip(asked, together, strict=True):
        (alone,) = jury(base, task).scores([one])
        assert alone.odds.equal(scores.odds)


def test_an_answer_without_room_moves_no_label(base: Base) -> None:
    """Four pairs of which the second is too long: the others keep their labels, and it has none."""
    correct = FEDBISCUIT["bug_label_misalignment_on_truncation"]["correct"]
    asked = [(f"Question {i}?", [f"One {i}", f"Two {i}"]) for i in range(len(correct))]
    long = [asked[0], (asked[1][0], ["x" * 600, "y"]), *asked[2:]]
    fair, cut = (jury(base, Selector(), length=420).scores(each) for each in (asked, long))
    assert cut[1].odds[:, 0, 1].isnan().all()
    for i in (0, 2, 3):
        assert cut[i].odds.equal(fair[i].odds)
