"""What clients say of themselves, kept and put into sentences; none of it is trusted."""

import pytest

from server_app.report.clients import facts_of, notes, partitions_of


def said(examples: int = 9, **more) -> dict:
    return {"examples": examples, "skipped": {}, "data": "ab", "truth": None, "clients": 3, **more}


def heldout(rows: int, unit: str = "prompt", shared: float = 0.0, anywhere: float = 0.0) -> dict:
    return {"rows": rows, "unit": unit, "shared": shared, "anywhere": anywhere}


def test_the_manifest_keeps_clients_by_number_and_their_names_beside():
    facts = facts_of(
        {1: said(name="a\x1b[2Jb" + "x" * 99), 0: said(loads=2, heldout=heldout(3)), 2: said(name="")}
    )
    assert list(facts["clients"]) == ["0", "1", "2"]
    assert facts["clients"]["0"] == {"examples": 9, "skipped": {}, "loads": 2, "heldout": heldout(3)}
    assert facts["clients"]["1"]["name"] == "a [2Jb" + "x" * 31 + "..."
    assert "name" not in facts["clients"]["2"]
    assert facts["left_out"] == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"heldout": "all"},
        {"heldout": {"rows": "3"}},
        {"heldout": {"rows": -1, "unit": "prompt"}},
        {"aside": {"rows": True}},
        {"name": {"a": 1}},
        {"left_out": [1]},
        {"left_out": {"smaller": {"owners": -1, "rows": 2}}},
        {"left_out": {"other": {"owners": 1, "rows": 2}}},
    ],
)
def test_what_has_another_form_is_absent(wrong):
    facts = facts_of({0: said(**wrong)})
    assert facts["clients"] == {"0": {"examples": 9, "skipped": {}, "loads": 0}}
    assert facts["left_out"] == {}


def test_a_share_that_is_none_is_absent():
    said_so = {"rows": 3, "unit": "odd", "shared": 7.0, "anywhere": float("nan")}
    assert facts_of({0: said(heldout=said_so)})["clients"]["0"]["heldout"] == {"rows": 3}


def test_what_all_is_well_with_is_not_mentioned():
    assert notes(facts_of({0: said(heldout=heldout(3)), 1: said()}), {}) == []


def test_who_and_what_is_left_out_is_said():
    """31 owners, 8 clients: 23 owners of 514 rows; two more liked nothing."""
    left_out = {
        "smaller": {"owners": 23, "rows": 514, "names": ["w1", "w2", "w\n3", "w4"]},
        "untrainable": {"owners": 1, "rows": 1, "names": ["w9"]},
    }
    facts = facts_of({c: said(heldout=heldout(0 if c == 1 else 3), left_out=left_out) for c in range(8)})
    smaller, untrainable, none = notes(facts, {1: "south"})
    assert "23 owners of 514 rows (w1, w2, w 3 and 20 more)" in smaller
    assert "federation.num-supernodes=31" in smaller
    assert "1 owner of 1 row (w9)" in untrainable
    assert "client south (1)" in none
    assert not any(name in note for note in notes(facts, {}) for name in ("w1", "w9", "south"))


def test_held_out_rows_whose_prompts_are_trained_on_are_said_with_the_reason():
    """10 of 40 rows at their own client, 22 somewhere."""
    facts = facts_of({
        0: said(heldout=heldout(10, "row", 1.0, 1.0)),
        1: said(heldout=heldout(30, "prompt", 0.0, 0.4)),
        2: said(aside={"rows": 8, "shared": 0.5}),
    })  # fmt: skip
    own, anywhere, aside = notes(facts, {})
    assert "25.0 % of 40 held-out rows" in own
    assert "1 client whose rows all ask the same" in own
    assert "55.0 % of 40 held-out rows" in anywhere
    assert "50.0 % of 8 rows set aside" in aside


def test_the_federation_is_as_large_as_most_of_its_clients_say():
    assert partitions_of({0: said(), 1: said(clients="many"), 2: said()}) == 3
    assert partitions_of({0: {"client": 0}, 1: {}}) == 2
