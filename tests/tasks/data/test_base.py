from collections import Counter

import pytest

from core.errors import ConfigError, DataError
from tasks.data.base import (
    DEMONSTRATION,
    PAIR,
    THUMB,
    BadRow,
    SourceRow,
    canonical,
    demonstrations,
    flip_preference,
    kind_of,
    ktor,
    read,
    split_prompt,
    thumbs,
    view,
)
from tests.vectors import OPENFEDLLM

USER, GOOD, BAD = (
    {"role": role, "content": text}
    for role, text in (("user", "q"), ("assistant", "good"), ("assistant", "bad"))
)


def pair(n: int) -> dict[str, str]:
    return {"prompt": f"p{n}", "chosen": f"good{n}", "rejected": f"bad{n}"}


def tuples(rows):
    return [(row["prompt"], row["completion"], row["label"]) for row in rows]


@pytest.mark.parametrize(
    ("raw", "row"),
    [
        ({**pair(1), "margin": 2}, pair(1)),
        ({**pair(1), "label_confidence": 1, "confidence": 7}, {**pair(1), "label_confidence": 1.0}),
        ({"prompt": "p", "completion": "c", "label": False}, {"prompt": "p", "completion": "c", "label": False}),
        ({"prompt": "p", "completion": "c", "id": 1}, {"prompt": "p", "completion": "c"}),
        ({"instruction": "Add", "input": "", "output": "x"}, {"prompt": "Add", "completion": "x"}),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, {"prompt": "Add 1 2", "completion": "3"}),
        ({"instruction": "Add", "response": "x"}, {"prompt": "Add", "completion": "x"}),
        (
            {"history": "h", "human_ref_A": "50 votes", "human_ref_B": "2 votes", "labels": 1, "domain": "d"},
            {"prompt": "h", "chosen": "50 votes", "rejected": "2 votes"},
        ),
        (
            {"history": "h", "human_ref_A": "2 votes", "human_ref_B": "50 votes", "labels": 0},
            {"prompt": "h", "chosen": "50 votes", "rejected": "2 votes"},
        ),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}),
    ],
)  # fmt: skip
def test_common_columns_are_renamed_to_canonical_ones(raw, row):
    made = canonical(SourceRow("line 1", raw))
    assert made == row
    assert kind_of(made) in (PAIR, THUMB, DEMONSTRATION)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ([1, 2], "is no JSON object"),
        ({"prompt": "p", "chosen": "c"}, r"misses columns: .*got chosen\+prompt"),
        ({**pair(1), "prompt": " \n"}, "prompt is empty"),
        ({**pair(1), "chosen": ""}, "chosen is empty"),
        ({**pair(1), "rejected": None}, r"misses columns: .*got chosen\+prompt; null: rejected"),
        ({**pair(1), "rejected": "good1"}, "chosen equals rejected"),
        ({"prompt": "p", "completion": "c", "label": 1}, "label must be true or false, got int"),
        ({"prompt": "p", "completion": "c", "label": "yes"}, "label must be true or false, got str"),
        ({"prompt": [], "completion": [GOOD]}, "prompt is empty"),
        ({"prompt": [USER], "completion": "c"}, "mixes strings and lists of messages"),
        (
            {"prompt": [{"role": "user"}], "completion": [GOOD]},
            "prompt holds a message without role and content",
        ),
        (
            {"prompt": [USER], "completion": [{"role": "assistant", "content": ""}]},
            "completion holds a message whose",
        ),
        *(
            ({**pair(1), "label_confidence": c}, "must be a number from 0 to 1")
            for c in (7, "1", True, float("nan"))
        ),
        ({"chosen": "a b", "rejected": 3}, "has no prompt"),
        ({"history": "h", "human_ref_A": "a", "human_ref_B": "b", "labels": 2}, "misses columns"),
        ({"chosen": "same", "rejected": "same"}, "chosen equals rejected"),
        ({"chosen": "Yes", "rejected": "Yes sir"}, "prompt is empty"),
    ],
)
def test_a_bad_row_is_refused_with_its_reason(raw, reason):
    with pytest.raises(BadRow, match=reason):
        canonical(SourceRow("line 1", raw))


@pytest.mark.parametrize("answer", ["I can help you today.", "Yes", "It depends"])
def test_a_transcript_is_cut_at_its_last_shared_turn(answer):
    """OpenFedLLM cuts at the first character that differs, which drops the common start of the answers."""
    talk = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Can you help?\n\nAssistant:"
    prompt, chosen, rejected = split_prompt(f"{talk} {answer}", f"{talk} {answer[:1]}no.")
    assert (prompt, chosen, rejected) == (talk, f" {answer}", f" {answer[:1]}no.")


def test_other_strings_are_cut_before_the_first_word_that_differs():
    assert split_prompt("The sky is blue.", "The sky is black.") == ("The sky is", " blue.", " black.")


def test_a_conversation_that_continues_the_other_keeps_its_answer():
    """One list is the start of the other: the last shared message is an answer, not a prompt."""
    longer = [USER, GOOD, USER, BAD]
    assert split_prompt(longer[:2], longer) == ([USER], [GOOD], [GOOD, USER, BAD])


def test_answers_of_recorded_transcripts_are_complete():
    """The inputs of the vector hh_rlhf_split, whose outputs record the fault; here prompt + answer = transcript."""
    rows = OPENFEDLLM["hh_rlhf_split"]["inputs"]["rows"]
    for row in rows:
        if row["chosen"] == row["rejected"]:
            continue
        prompt, chosen, rejected = split_prompt(row["chosen"], row["rejected"])
        assert prompt.endswith("\n\nAssistant:")
        assert (prompt + chosen, prompt + rejected) == (row["chosen"], row["rejected"])
        assert "\n\n" not in chosen + rejected


def test_ktoo_by_hand():
    """Two pairs: the chosen ones in order, then the rejected ones."""
    assert tuples(thumbs([pair(1), pair(2)])) == [
        ("p1", "good1", True), ("p2", "good2", True), ("p1", "bad1", False), ("p2", "bad2", False)
    ]  # fmt: skip


def test_ktoo_and_ktor_equal_the_recorded_vectors():
    vectors = OPENFEDLLM
    pairs = [
        [dict(zip(PAIR, row, strict=True)) for row in client]
        for client in vectors["ktoo_transform"]["inputs"]["client_pairs"]
    ]
    original = [thumbs(client) for client in pairs]
    assert [[list(row) for row in tuples(c)] for c in original] == vectors["ktoo_transform"]["outputs"][
        "clients"
    ]
    expected = vectors["ktor_intended_seed2023"]["outputs"]["clients"]
    assert [[list(row) for row in tuples(c)] for c in ktor(original, 2023)] == expected
    assert expected != vectors["ktor_as_implemented"]["outputs"]["clients"]


def test_ktor_keeps_counts_and_rows_and_moves_them():
    """Sizes 6, 4, 8 and the first slots of the vector ktor_intended_seed2023: rows (2,2), (2,5), (2,3), (0,5)."""
    original = [thumbs([pair(10 * client + n) for n in range(size)]) for client, size in enumerate((3, 2, 4))]
    redistributed = ktor(original)
    assert [len(rows) for rows in redistributed] == [6, 4, 8]
    everything = [
        Counter(row for rows in clients for row in tuples(rows)) for clients in (original, redistributed)
    ]
    assert everything[0] == everything[1]
    assert redistributed[0][:4] == [original[2][2], original[2][5], original[2][3], original[0][5]]
    assert all(before != after for before, after in zip(original, redistributed, strict=True))
    assert ktor(original, 1) != redistributed


def test_views():
    rows = [pair(1), pair(2)]
    assert view(rows, PAIR) == rows
    assert view(rows, THUMB) == thumbs(rows)
    assert view(rows, DEMONSTRATION) == [{"prompt": f"p{n}", "completion": f"good{n}"} for n in (1, 2)]
    assert demonstrations(thumbs(rows)) == view(rows, DEMONSTRATION)
    with pytest.raises(ConfigError, match=r"trains on pairs .* but the data are thumbs"):
        view(thumbs(rows), PAIR)


def source_rows(*raws):
    return [SourceRow(f"a.jsonl line {number}", raw) for number, raw in enumerate(raws, start=1)]


SECRET = "a private sentence"


def test_the_first_bad_row_is_an_error_that_counts_the_rest():
    rows = source_rows(pair(1), {"prompt": SECRET}, pair(2), {**pair(3), "chosen": ""}, {"prompt": SECRET})
    with pytest.raises(DataError) as error:
        read(rows, "error")
    assert str(error.value).startswith("a.jsonl line 2: misses columns: ")
    assert "; 2 more bad rows (" in str(error.value)
    assert SECRET not in str(error.value)


def test_skipped_bad_rows_are_counted_by_reason():
    rows = source_rows(
        pair(1), {**pair(2), "chosen": ""}, {**pair(3), "chosen": ""}, {**pair(4), "rejected": "good4"}
    )
    table = read(rows, "skip")
    assert [entry.row for entry in table.entries] == [pair(1)]
    assert table.skipped == {"chosen is empty": 2, "chosen equals rejected": 1}


def test_a_confidence_does_not_change_the_kind_of_a_row():
    """Pairs with and without a confidence are of one kind; both thumbs of a pair have its confidence."""
    source = [SourceRow("a", pair(0)), SourceRow("b", {**pair(1), "label_confidence": 0.5})]
    rows = [entry.row for entry in read(source, "error").entries]
    assert view(rows, PAIR) == [pair(0), {**pair(1), "label_confidence": 0.5}]
    assert view(rows[::-1], PAIR) == [{**pair(1), "label_confidence": 0.5}, pair(0)]
    assert [row.get("label_confidence") for row in view(rows, THUMB)] == [None, 0.5, None, 0.5]
    assert view([canonical(SourceRow("c", {**row, "x": 1})) for row in view(rows, THUMB)], THUMB) == thumbs(
        rows
    )


@pytest.mark.parametrize("columns", [PAIR, THUMB])
def test_demonstrations_of_uncertain_labels_are_refused(columns):
    """A confidence of 1.0 or null means a certain label, as in a row without a confidence."""
    for confidence in (0.0, 0.5, 0.999):
        rows = view([pair(0), {**pair(1), "label_confidence": confidence}], columns)
        with pytest.raises(
            ConfigError, match=r"label_confidence below 1; set task\.name to dpo, pdpo or kto"
        ):
            view(rows, DEMONSTRATION)
    for confidence in (1, None):
        row = canonical(SourceRow("a", {**pair(1), "label_confidence": confidence}))
        assert view([row], DEMONSTRATION) == view([pair(1)], DEMONSTRATION)
    with pytest.raises(BadRow, match=r"label_confidence .*add the column label"):
        canonical(SourceRow("a", {"prompt": "p", "completion": "c", "label_confidence": 0.5}))


def test_flipping_a_preference_by_hand():
    """Other columns stay: the flipped label is as certain as the original one."""
    row = {**pair(1), "label_confidence": 0.9}
    assert flip_preference(row) == {
        "prompt": "p1",
        "chosen": "bad1",
        "rejected": "good1",
        "label_confidence": 0.9,
    }
    assert flip_preference({"prompt": "p", "completion": "c", "label": True})["label"] is False
    with pytest.raises(ConfigError, match="demonstrations"):
        flip_preference({"prompt": "p", "completion": "c"})


def test_all_rows_must_be_of_one_kind():
    with pytest.raises(DataError, match=r"line 2: is one of demonstrations, but most rows are pairs"):
        read(source_rows(pair(1), {"prompt": "p", "completion": "c"}), "error")


def test_a_column_that_is_no_name_is_counted_and_not_quoted():
    """A file whose keys are somebody's words must not be told by them."""
    raw = {"question": "q", "my knee hurts": 1, "x" * 33: 2}
    with pytest.raises(BadRow, match=r"got question\+2 others$"):
        canonical(SourceRow("a.jsonl line 1", raw))
