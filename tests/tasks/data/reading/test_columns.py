"""Columns of a row: used, ignored, or refused because they may hold the prompt or a judgement."""

from typing import Any

import pytest

from tasks.data.base import BadRow, ColumnUse, SourceRow, canonical, load, read
from tasks.data.jsonl import Jsonl
from tests.paths import REAL

PAIR = {"prompt": "Tell me about hares.", "chosen": "They are fast.", "rejected": "No."}
ANSWERS = {"chosen": "Hares are fast.", "rejected": "Hares are slow."}
THUMB = {"prompt": "Why?", "completion": "Because.", "label": True}
DEMONSTRATION = {"prompt": "Why?", "completion": "Because."}
SECRET = "marker-51c2"
USER, GOOD, BAD = (
    {"role": role, "content": text}
    for role, text in (("user", "q"), ("assistant", "good"), ("assistant", "bad"))
)
TALK = "\n\nHuman: Hi\n\nAssistant:"


def row(raw: dict[str, Any]) -> dict[str, Any]:
    return dict(canonical(SourceRow("a.jsonl line 1", raw)))


@pytest.mark.parametrize(
    "name", ["question", "query", "input", "title", "text", "Question", "user_query", "topic", "source_text"]
)
def test_shared_words_are_not_the_prompt_if_another_column_may_hold_it(name):
    with pytest.raises(BadRow, match=f"has no prompt.* column {name} .*rename it to prompt"):
        row({**ANSWERS, name: f"Are hares fast? {SECRET}"})


@pytest.mark.parametrize("value", [["a", "b"], {"text": "a"}, [["q", "a"]]])
def test_text_inside_a_value_counts_as_text(value):
    with pytest.raises(BadRow, match="a column past"):
        row({**ANSWERS, "past": value})


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"id": "x-1", "source": "a set", "margin": 2.5},
        {"question": None},
        {"question": " "},
        {"votes": [1, 2]},
    ],
)
def test_shared_words_are_the_prompt_if_no_other_column_holds_text(extra):
    assert row({**ANSWERS, **extra}) == {"prompt": "Hares are", "chosen": " fast.", "rejected": " slow."}


@pytest.mark.parametrize("extra", [{}, {"title": "A talk"}, {"question": "Hi"}])
def test_conversations_and_transcripts_contain_their_prompt(extra):
    """A question that is part of the shared turns is not lost."""
    assert row({"chosen": f"{TALK} yes", "rejected": f"{TALK} no", **extra})["prompt"] == TALK
    talk = {"role": "user", "content": "Hi"}
    assert row({"chosen": [talk, GOOD], "rejected": [talk, BAD], **extra})["prompt"] == [talk]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"chosen": [GOOD], "rejected": [BAD], "question": "q"}, "prompt is empty"),
        ({"chosen": [{**USER, "content": "a"}, GOOD], "rejected": [USER, BAD]}, "prompt is empty"),
        ({"chosen": [USER, USER, GOOD], "rejected": [USER, BAD]}, "differ before the first answer"),
        (
            {"chosen": [USER, GOOD], "rejected": [USER, BAD], "system": "Be kind."},
            "column system whose text is not in",
        ),
        (
            {"chosen": f"{TALK} yes", "rejected": f"{TALK} no", "question": "Why?"},
            "column question whose text",
        ),
        ({"chosen": f"{TALK} yes", "rejected": "no", "note": "n"}, "a column note that may be it"),
    ],
)
def test_a_conversation_without_its_prompt_is_refused(raw, reason):
    with pytest.raises(BadRow, match=reason):
        row(raw)


CONTEXT = {
    "system": "Be kind.",
    "system_prompt": "Be kind.",
    "systemMessage": "Be kind.",
    "history": [["q", "a"]],
    "context": "A text.",
    "input": "More.",
    "instruction": "Sum up.",
    "messages": [{"role": "user", "content": "x"}],
    "turns": ["a", "b"],
    "conversations": [{"from": "human", "value": "x"}],
    "past": [{"role": "user", "content": "x"}],
    "document": "A text.",
    "original_prompt": "Other.",
    "chat_history": "x",
    "persona": "A vet.",
    "image": "x.png",
}


@pytest.mark.parametrize("kind", [PAIR, THUMB, DEMONSTRATION])
@pytest.mark.parametrize("name", CONTEXT)
def test_a_column_that_a_prompt_may_need_is_refused(name, kind):
    with pytest.raises(BadRow, match=f"has a column {name}"):
        row({**kind, name: CONTEXT[name]})


@pytest.mark.parametrize("name", [name for name in CONTEXT if name != "image"])
def test_context_that_is_null_blank_or_in_the_prompt_is_ignored(name):
    for value in (None, "", " ", [], [{"role": "user", "content": ""}], "about  hares."):
        assert row({**PAIR, name: value}) == PAIR


def test_messages_that_the_prompt_repeats_are_ignored():
    turns = [
        {"role": "user", "content": "Tell me about hares."},
        {"role": "assistant", "content": "They are fast."},
    ]
    assert row({**PAIR, "messages": turns}) == PAIR
    with pytest.raises(BadRow, match="column messages"):
        row({**PAIR, "messages": [{"role": "system", "content": "Be brief."}, *turns]})


def test_an_input_that_is_not_a_string_is_refused():
    with pytest.raises(BadRow, match=r"instruction and input .*column prompt"):
        row({"instruction": "Double it.", "input": [4], "output": "8"})


JUDGEMENTS = {
    "rating": 1,
    "score": 0.1,
    "stars": "1",
    "reward": -2.0,
    "thumbs_up": False,
    "feedback": "wrong in every way",
    "verdict": "x",
    "is_correct": False,
    "helpful": 0,
    "quality": {"overall": 1},
    "annotator_rating": 2,
    "like_count": 0,
    "total_score": 3,
    "unheard_of": 3,
    "flag": True,
    "reaction": "👎",
    "mark": "bad",
    "grade": "4/10",
    "preference": "b",
    "difficulty": 3,
}


@pytest.mark.parametrize("name", JUDGEMENTS)
def test_a_completion_with_a_judgement_is_not_a_demonstration(name):
    for answer in ("completion", "output", "response"):
        with pytest.raises(BadRow, match=f"has a column {name} that may say how good the answer is"):
            row({"prompt": "Why?", answer: "Because.", name: JUDGEMENTS[name]})
    assert row({**THUMB, name: JUDGEMENTS[name]}) == THUMB
    assert row({**PAIR, name: JUDGEMENTS[name]}) == PAIR


FACTS = {
    "id": 7,
    "question_id": 3,
    "source": "a set",
    "n_turns": 2,
    "prompt_tokens": 12,
    "model": "m",
    "created_at_utc": 1.5e9,
    "temperature": 0.7,
    "top_p": 1,
    "sha256": "abc",
    "sourceUrl": "http://x",
    "metadata": {"score": 1},
    "label_source": "x",
    "rating_id": 5,
    "note": "free text",
}


@pytest.mark.parametrize("name", FACTS)
def test_metadata_of_a_row_is_ignored(name):
    for kind in (PAIR, THUMB, DEMONSTRATION):
        assert row({**kind, name: FACTS[name]}) == kind


def test_metadata_as_long_as_a_text_counts_as_text():
    with pytest.raises(BadRow, match="a column source that may be it"):
        row({**ANSWERS, "source": "word " * 60})


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({**DEMONSTRATION, "rejected": "No."}, "has a column rejected beside completion"),
        ({"prompt": "p", "output": "a", "response": "b"}, "has a column response beside output"),
        ({"prompt": "p", "output": "a", "answer_2": "b"}, "has a column answer_2 beside output"),
        ({**PAIR, **THUMB}, "is a pair and a thumb at once"),
        ({**DEMONSTRATION, "label_confidence": 0.9}, "label_confidence .*add the column label"),
        ({"question": "q", "answer": "a"}, r"rename question to prompt and answer to completion"),
        ({**PAIR, "chosen": None}, r"got prompt\+rejected; null: chosen"),
        ({**DEMONSTRATION, "my secret wish": 3}, r"a column \(its name is not shown\)"),
    ],
)
def test_an_ambiguous_row_is_refused(raw, reason):
    with pytest.raises(BadRow, match=reason) as error:
        row(raw)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({**PAIR, "label_confidence": None}, PAIR),
        ({**PAIR, "instruction": None, "input": None, "label": None, "completion": None}, PAIR),
        (
            {**THUMB, "chosen": None, "rejected": None, "label_confidence": 0.5},
            {**THUMB, "label_confidence": 0.5},
        ),
        ({**DEMONSTRATION, "label": None, "output": None, "response": None}, DEMONSTRATION),
        (
            {"prompt": None, "instruction": "Why?", "input": None, "completion": None, "output": "Because."},
            DEMONSTRATION,
        ),
        (
            {"prompt": None, "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        ),
    ],
)
def test_a_null_column_is_ignored(raw, expected):
    assert row(raw) == expected


def test_used_and_ignored_columns_are_reported_by_name():
    raws = [
        {"instruction": "Why?", "input": "", "output": "x", "id": 1, "judge": "j"},
        {"instruction": "Why?", "input": "now", "output": "x", "somebody's words": "y", "note": "n"},
    ]
    table = read(
        [SourceRow(f"line {n}", raw, "j", client_column="judge") for n, raw in enumerate(raws)], "error"
    )
    assert table.columns == ColumnUse(
        ("prompt from instruction+input", "completion from output", "client from judge"),
        ("id", "note", "1 others"),
    )
    assert table.columns.line() == (
        "prompt from instruction+input; completion from output; client from judge; ignored: id, note, 1 others"
    )
    assert table.columns.outside() == ColumnUse(("prompt", "completion", "client"), ("3 others",))


def test_the_most_frequent_kind_of_row_decides_not_the_first():
    """One missing label must not turn all thumbs into bad rows."""
    rows = [SourceRow("line 1", {**THUMB, "label": None}), *[SourceRow(f"line {n}", THUMB) for n in (2, 3)]]
    table = read(rows, "skip")
    assert [dict(entry.row) for entry in table.entries] == [THUMB, THUMB]
    assert table.first == {"is one of demonstrations, but most rows are thumbs": "line 1"}


@pytest.mark.skipif(not REAL.exists(), reason="the shared data are not here")
@pytest.mark.parametrize(
    "name",
    ["general_pref_demo/dpo_en_300", "general_pref_demo/kto_en_300", "tldr_workers/pairs_train",
             "hh_rlhf/helpful-online_train", "code_vuln_pref/train", "sft_general/alpaca_cleaned_1000",
             "mtbench_human/pairs_turn1_train", "imdb_pref/dev"]
)  # fmt: skip
def test_real_data_sets_are_read_without_a_bad_row(name):
    path = REAL / f"{name}.jsonl.gz"
    assert not load(Jsonl(str(path)), 0, 1, "error").skipped
