"""Encoding comparisons: the published text, both orders, the letters of a tokenizer, and the cut of long pairs."""

import pytest
import torch

from core.errors import ConfigError, DataError
from tasks.base import Example
from tasks.tokens.choice import (
    COMPARE,
    RATE,
    ChoiceEncoder,
    calibration_error,
    certainty,
    order_metrics,
    preference,
    share_right,
)
from tasks.tokens.encode import Encoder
from tests import tiny
from tests.paths import SHARED
from tests.vectors import FEDBISCUIT

SPEC = SHARED / "spec"
needs_spec = pytest.mark.skipif(not SPEC.is_dir(), reason="the specification is not part of the repository")
TOKENIZER = tiny.tokenizer()
PAIR = {"prompt": "Why?", "chosen": " Because. ", "rejected": "No idea"}
POST = "SUBREDDIT: r/cats\n\nTITLE: Help\n\nPOST: She hid.\nWhere?\n\nTL;DR:"


def choice_encoder(template=COMPARE, *, length: int = 1000, long_rows: str = "truncate") -> ChoiceEncoder:
    return ChoiceEncoder(Encoder(TOKENIZER, "auto", length, long_rows), template)


def text(ids) -> str:
    return "".join(TOKENIZER.convert_ids_to_tokens(list(ids)))


def whole(example: Example | None) -> tuple[str, str]:
    assert example is not None
    return text(example.prompt), text(example.twin)


@needs_spec
@pytest.mark.parametrize(("name", "fields"), [
    ("Summarisation", {"subreddit": "cats", "title": "Help", "post": "She hid.\nWhere?"}),
    ("QA and everything else", {"instruction": "Why?"}),
])  # fmt: skip
def test_comparisons_are_the_published_bytes_in_both_orders(name: str, fields: dict[str, str]) -> None:
    """One text of a line that starts with `- name: ` in prompts.md, between backticks, \\n for a newline."""
    page = (SPEC / "prompts.md").read_text()
    section = page[page.index("## Selector") :]
    (line,) = [x for x in section.splitlines()[:8] if x.startswith(f"- {name}: `")]
    template = line.split("`")[1].replace("\\n", "\n")
    prompt = POST if "post" in fields else "Why?"
    first, second = whole(choice_encoder().example(prompt, " Because. ", "No idea"))
    answers = {"output_A": "Because.", "output_B": "No idea"}
    assert first == "<s>" + template.format(**fields, **answers)
    swapped = {"output_A": "No idea", "output_B": "Because."}
    assert second == "<s>" + template.format(**fields, **swapped)


def test_the_chosen_answer_is_the_first() -> None:
    (example,) = choice_encoder().examples([PAIR])
    first, second = whole(example)
    assert "RESPONSE A: Because.\n### RESPONSE B: No idea\n" in first
    assert "RESPONSE A: No idea\n### RESPONSE B: Because.\n" in second
    assert [text(c) for c in example.completions] == ["A", "B"]
    assert example.lengths == (len("<s>Because.") - 2, len("<s>No idea") - 2)
    (back,) = choice_encoder().examples([{**PAIR, "chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}])
    assert (back.prompt, back.twin) == (example.twin, example.prompt)


def test_an_answer_can_be_rated_alone() -> None:
    for prompt in ("Why?", POST):
        first, second = whole(choice_encoder(RATE).example(prompt, "Because.", "No idea"))
        assert "Because." in first
        assert "No idea" not in first
        assert second == first.replace("Because.", "No idea")


def test_a_conversation_is_its_only_turn_or_a_transcript() -> None:
    turns = [{"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Hello"), ("user", "Why?"))]
    answers = [[{"role": "assistant", "content": c}] for c in ("Because.", "No idea")]
    assert whole(choice_encoder().example(turns[2:], *answers)) == whole(choice_encoder().examples([PAIR])[0])
    assert (
        "QUERY: User: Hi\n\nAssistant: Hello\n\nUser: Why?\n###"
        in whole(choice_encoder().example(turns, *answers))[0]
    )


WORDS = " ".join(f"word{i:02}" for i in range(60))


@pytest.mark.parametrize(
    ("prompt", "label"), [(WORDS, "QUERY: "), (POST.replace("She hid.\nWhere?", WORDS), "POST: ")]
)
@pytest.mark.parametrize("template", [COMPARE, RATE])
def test_a_long_prompt_loses_only_its_start(prompt: str, label: str, template) -> None:
    """As much of its end stays as fits, within a few characters, and the same in both orders."""
    full = choice_encoder(template).example(prompt, "Because.", "No")
    assert full is not None
    length = max(len(full.prompt), len(full.twin)) - 150
    short = choice_encoder(template, length=length).example(prompt, "Because.", "No")
    assert short is not None
    assert length - 5 <= max(len(short.prompt), len(short.twin)) <= length
    queries = [cut.split(label)[1].split("\n###")[0] for cut in whole(short)]
    assert queries[0] == queries[1]
    assert queries[0]
    assert WORDS.endswith(queries[0])
    assert [cut.replace(queries[0], WORDS) for cut in whole(short)] == list(whole(full))


def test_pairs_without_room_for_a_query_are_skipped_and_counted() -> None:
    """Skipping a row does not shift labels: the second row remains, with its first answer first."""
    rows = [{**PAIR, "chosen": "x" * 300}, PAIR]
    encoder = choice_encoder(length=350)
    (example,) = encoder.examples(rows)
    assert encoder.encode.skipped == {"too long": 1}
    assert whole(example) == whole(choice_encoder().examples([PAIR])[0])
    long = {**PAIR, "prompt": "y" * 300}
    for long_rows, skipped in (("truncate", {}), ("skip", {"too long": 1})):
        encoder = choice_encoder(length=350, long_rows=long_rows)
        assert len(encoder.examples([long, PAIR])) == 2 - bool(skipped)
        assert encoder.encode.skipped == skipped
    with pytest.raises(DataError, match=r"row 1: \d+ tokens exceed train.max-length = 350"):
        choice_encoder(length=350, long_rows="error").examples([PAIR, long])
    exact = len(whole(choice_encoder().example("", "Because.", "No idea"))[0]) - 2
    (bare,) = choice_encoder(length=exact).examples([{**PAIR, "prompt": "Why? " * 9}])
    assert len(bare.prompt) == exact, "room for nothing but the answers"


def test_the_letters_follow_a_space_where_they_are_one_token() -> None:
    """A character tokenizer falls back to bare letters; one that merges them with the space does not."""
    assert [TOKENIZER.convert_ids_to_tokens(i) for i in choice_encoder().letters] == ["A", "B"]
    merging = tiny.tokenizer(merged=(" A", " B"))
    letters = ChoiceEncoder(Encoder(merging, "auto", 400), COMPARE).letters
    assert [merging.convert_ids_to_tokens(i) for i in letters] == [" A", " B"]


def test_a_tokenizer_without_the_letters_is_refused() -> None:
    glued = tiny.tokenizer(merged=(":A", ": A"))
    with pytest.raises(ConfigError, match=r"task\.name: .*### YOUR CHOICE:.*another model"):
        ChoiceEncoder(Encoder(glued, "auto", 400), COMPARE).example("Why?", "a", "b")


def test_certainty_by_hand() -> None:
    sure, half = choice_encoder().examples([PAIR, {**PAIR, "label_confidence": 0.5}])
    like = torch.zeros(1, dtype=torch.float64)
    assert certainty([sure, half], 0.0, like).tolist() == [1.0, 0.5]
    assert certainty([sure, half], 0.1, like).tolist() == pytest.approx([0.9, 0.5])


def test_metrics_by_hand() -> None:
    """Right in both orders; always A, more so when right; always B, tied; wrong in both."""
    z = torch.tensor([[2.0, -1.0], [3.0, 1.0], [-1.0, -1.0], [-2.0, 2.0]])
    assert preference(z).tolist() == [1.5, 1.0, 0.0, -2.0]
    assert order_metrics(z) == {
        "accuracy": 2.5 / 4,
        "accuracy/single_order": (2 / 4 + 2 / 4) / 2,
        "order_consistency": 2 / 4,
    }
    assert share_right(torch.tensor([0, 0, 1])) == 2 / 3


def test_calibration_by_hand() -> None:
    """Two picks at 75 % of which one is right, and one right one at 95 %: (2 x 0.25 + 0.05) / 3."""
    s = torch.logit(torch.tensor([0.75, 0.25, 0.95], dtype=torch.float64))
    assert calibration_error(s) == pytest.approx((2 * 0.25 + 0.05) / 3)
    assert calibration_error(torch.zeros(4)) == 0.0  # 50 %, and ties are half right
    assert calibration_error(torch.full((2,), 50.0)) == pytest.approx(0.0)  # certain, in the last bin


def test_the_published_votes() -> None:
    """Soft votes of selectors that do not care about the order; the vector's logits are B - A, ours A - B."""
    for case in FEDBISCUIT["majority_vote"]["cases"][:4]:
        z = -torch.tensor(case["selector_logit_B_minus_A"], dtype=torch.float64)
        vote = preference(torch.stack([z, -z], -1)).mean(0)
        assert vote.tolist() == pytest.approx([-s for s in case["soft_vote_score"]], abs=1e-8)
        assert (vote < 0).long().tolist() == case["soft_vote_mean_logit"]
